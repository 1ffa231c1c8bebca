// pgx and lib/pq: pgx's cache of statements and what it does when a table changes below it, batches, COPY, listening,
// cancels by context, and lib/pq beside it.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
	"github.com/lib/pq"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func check(holds bool, what string) {
	if !holds {
		panic(what)
	}
}

func state(err error) string {
	var ofServer *pgconn.PgError
	if errors.As(err, &ofServer) {
		return ofServer.Code
	}
	var ofPq *pq.Error
	if errors.As(err, &ofPq) {
		return string(ofPq.Code)
	}
	return fmt.Sprint(err)
}

func main() {
	rounds, err := strconv.Atoi(os.Getenv("ROUNDS"))
	must(err)
	withPgx(rounds)
	withPool(rounds)
	withPq(rounds)
	fmt.Println("pgx 4, lib/pq: ok")
}

func withPgx(rounds int) {
	ctx := context.Background()
	db, err := pgx.Connect(ctx, "sslmode=require")
	must(err)
	defer db.Close(ctx)
	for turn := 0; turn < rounds; turn++ {
		var n int
		var text string
		must(db.QueryRow(ctx, "SELECT $1::int + 1, $2::text", turn, "é"+strconv.Itoa(turn)).Scan(&n, &text))
		check(n == turn+1 && text == "é"+strconv.Itoa(turn), "a statement of the cache")

		_, err = db.Exec(ctx, "DROP TABLE IF EXISTS pgx; CREATE TABLE pgx (a int)")
		must(err)
		_, err = db.Exec(ctx, "INSERT INTO pgx VALUES ($1)", turn)
		must(err)
		must(db.QueryRow(ctx, "SELECT * FROM pgx WHERE a >= $1", 0).Scan(&n))
		check(n == turn, "a row of the table")
		_, err = db.Exec(ctx, "ALTER TABLE pgx ALTER a TYPE bigint")
		must(err)
		var long int64
		err = db.QueryRow(ctx, "SELECT * FROM pgx WHERE a >= $1", 0).Scan(&long)
		if err != nil { // pgx drops the statement from its cache then
			check(state(err) == "0A000", "what a changed table may be answered with: "+state(err))
			err = db.QueryRow(ctx, "SELECT * FROM pgx WHERE a >= $1", 0).Scan(&long)
		}
		must(err)
		check(long == int64(turn), "the row of the changed table")

		batch := &pgx.Batch{}
		for i := 0; i < 50; i++ {
			batch.Queue("SELECT $1::int * 2", i)
		}
		answers := db.SendBatch(ctx, batch)
		for i := 0; i < 50; i++ {
			must(answers.QueryRow().Scan(&n))
			check(n == 2*i, "an answer of a batch")
		}
		must(answers.Close())

		tx, err := db.Begin(ctx)
		must(err)
		rows := [][]interface{}{}
		for i := 0; i < 200; i++ {
			rows = append(rows, []interface{}{int64(i)})
		}
		copied, err := tx.CopyFrom(ctx, pgx.Identifier{"pgx"}, []string{"a"}, pgx.CopyFromRows(rows))
		must(err)
		check(copied == 200, "COPY")
		inner, err := tx.Begin(ctx) // a savepoint
		must(err)
		_, err = inner.Exec(ctx, "SELECT 1/$1", 0)
		check(state(err) == "22012", "a division by zero: "+state(err))
		must(inner.Rollback(ctx))
		must(tx.QueryRow(ctx, "SELECT count(*) FROM pgx").Scan(&n))
		check(n == 201, "the rows of the transaction")
		must(tx.Rollback(ctx))

		_, err = db.Exec(ctx, "LISTEN pgx")
		must(err)
		_, err = db.Exec(ctx, "SELECT pg_notify('pgx', $1)", strconv.Itoa(turn))
		must(err)
		soon, done := context.WithTimeout(ctx, 5*time.Second)
		heard, err := db.WaitForNotification(soon)
		done()
		must(err)
		check(heard.Payload == strconv.Itoa(turn) && heard.PID == db.PgConn().PID(), "its own notification")
		_, err = db.Exec(ctx, "UNLISTEN *")
		must(err)
	}
	must(db.PgConn().CancelRequest(ctx)) // with nothing that runs: harmless
	go func() {
		time.Sleep(200 * time.Millisecond)
		must(db.PgConn().CancelRequest(ctx))
	}()
	_, err = db.Exec(ctx, "SELECT pg_sleep(20)")
	check(state(err) == "57014", "a cancelled query: "+state(err))
}

// Eight connections at once on pgusher's three, each with its own time zone.
func withPool(rounds int) {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig("pool_max_conns=8")
	must(err)
	pool, err := pgxpool.ConnectConfig(ctx, config)
	must(err)
	defer pool.Close()
	ended := make(chan error)
	for worker := 0; worker < 8; worker++ {
		go func(worker int) {
			ended <- pool.AcquireFunc(ctx, func(db *pgxpool.Conn) error {
				zone := fmt.Sprintf("Etc/GMT+%d", worker)
				if _, err := db.Exec(ctx, "SET TIME ZONE '"+zone+"'"); err != nil {
					return err
				}
				for turn := 0; turn < rounds; turn++ {
					var hour int
					err := db.QueryRow(ctx, "SELECT extract(hour FROM '2024-01-01 00:00'::timestamptz AT TIME ZONE 'UTC')::int").Scan(&hour)
					if err == nil && hour != worker {
						err = fmt.Errorf("%s answered with %d hours", zone, hour)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		}(worker)
	}
	for worker := 0; worker < 8; worker++ {
		must(<-ended)
	}
}

func withPq(rounds int) {
	db, err := sql.Open("postgres", "sslmode=require")
	must(err)
	defer db.Close()
	db.SetMaxOpenConns(4)
	statement, err := db.Prepare("SELECT $1::int + 1")
	must(err)
	for turn := 0; turn < rounds; turn++ {
		var n int
		must(statement.QueryRow(turn).Scan(&n))
		check(n == turn+1, "a prepared statement of lib/pq")
		tx, err := db.Begin()
		must(err)
		_, err = tx.Exec("CREATE TABLE pq (a int, b text)")
		must(err)
		copying, err := tx.Prepare(pq.CopyIn("pq", "a", "b"))
		must(err)
		for i := 0; i < 100; i++ {
			_, err = copying.Exec(i, "b\t\\")
			must(err)
		}
		_, err = copying.Exec()
		must(err)
		must(copying.Close())
		must(tx.QueryRow("SELECT count(*) FROM pq WHERE b = $1", "b\t\\").Scan(&n))
		check(n == 100, "what lib/pq copied")
		must(tx.Rollback())
	}
	soon, done := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer done()
	_, err = db.ExecContext(soon, "SELECT pg_sleep(20)")
	check(state(err) == "57014", "a query that lib/pq cancels: "+state(err))
	must(statement.QueryRow(1).Scan(new(int)))
	must(statement.Close())
}
