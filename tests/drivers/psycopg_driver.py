"""psycopg 3 on its own libpq: direct TLS, protocol 3.2, channel binding, pipelines, COPY, cursors, cancels."""

import os
import threading

import psycopg

ROUNDS = int(os.environ["ROUNDS"])
WAYS = [
    "sslmode=disable",
    "sslmode=require channel_binding=require",
    "sslmode=require sslnegotiation=direct channel_binding=require min_protocol_version=3.2",
]

for number, way in enumerate(WAYS):
    with psycopg.connect(way, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS psycopg_{number} (a int, b text)")
        for turn in range(ROUNDS):
            nonce = f"{number}-{turn}-é\\'"
            assert connection.execute("SELECT %s::text, %s::int", (nonce, turn), prepare=True).fetchone() == (nonce, turn)
            with connection.transaction():
                connection.execute(f"INSERT INTO psycopg_{number} VALUES (%s, %s)", (turn, nonce))
                with connection.cursor("named") as cursor:
                    cursor.execute("SELECT generate_series(1, 1000)")
                    assert len(cursor.fetchmany(10)) == 10 and len(cursor.fetchall()) == 990
                with connection.cursor().copy(f"COPY psycopg_{number} FROM STDIN") as copy:
                    for row in range(100):
                        copy.write_row((row, nonce))
                with connection.cursor().copy(f"COPY psycopg_{number} TO STDOUT") as copy:
                    assert sum(1 for _ in copy.rows()) == 101
                raise psycopg.Rollback()
            with connection.pipeline():
                first = connection.execute("SELECT 1")
                try:
                    connection.execute("SELECT 1/0").fetchone()
                    raise AssertionError("1/0 gave an answer")
                except psycopg.errors.DivisionByZero:
                    pass
                assert first.fetchone() == (1,)
            assert connection.execute("SELECT %s", (nonce,)).fetchone() == (nonce,)
        timer = threading.Timer(0.2, connection.cancel_safe)
        timer.start()
        try:
            connection.execute("SELECT pg_sleep(20)")
            raise AssertionError("not cancelled")
        except psycopg.errors.QueryCanceled:
            pass
        timer.join()
        assert connection.execute("SELECT 'after'").fetchone() == ("after",)

print(f"psycopg {psycopg.__version__}, libpq {psycopg.pq.version()}: ok")
