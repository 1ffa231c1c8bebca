"""psqlODBC: in its transactions each statement is between a SAVEPOINT and a RELEASE, with DEALLOCATE by SQL in the same query."""

import os

import pyodbc

ROUNDS = int(os.environ["ROUNDS"])
place = ";".join([
    "Driver=PostgreSQL Unicode", f"Servername={os.environ['PGHOST']}", f"Port={os.environ['PGPORT']}", f"Database={os.environ['PGDATABASE']}",
    f"UID={os.environ['PGUSER']}", f"PWD={os.environ['PGPASSWORD']}", "UseServerSidePrepare=1", "Protocol=7.4-2",
])


def state(action, *arguments):
    try:
        action(*arguments)
    except pyodbc.Error as error:
        return error.args[0]
    return "no error"


connection = pyodbc.connect(place, autocommit=False)
for turn in range(ROUNDS):
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE odbc (a int, b varchar(20))")
    for n in range(5):
        assert tuple(cursor.execute("SELECT ?::int * 3, ?::varchar", n, f"n{n}").fetchone()) == (3 * n, f"n{n}")
        assert cursor.execute("INSERT INTO odbc VALUES (?, ?)", n, "x" * n).rowcount == 1
    other = connection.cursor()
    assert other.execute("SELECT sum(a) FROM odbc WHERE b <> ?", "no").fetchone()[0] == 10
    assert state(cursor.execute, "SELECT 1/0") == "22012"
    # Within its transaction it goes on: the driver has gone back to its savepoint.
    assert cursor.execute("SELECT count(*) FROM odbc WHERE a < ?", 3).fetchone()[0] == 3
    cursor.executemany("INSERT INTO odbc VALUES (?, ?)", [(n, "many") for n in range(20)])
    connection.rollback()
    assert state(cursor.execute, "SELECT 1 FROM odbc") in ("42S02", "42P01")
    connection.rollback()
connection.autocommit = True
assert connection.cursor().execute("SHOW pgusher.pin").fetchone()[0] == "", "nothing keeps its connection"
print(f"psqlODBC {connection.getinfo(pyodbc.SQL_DRIVER_VER)}: ok")
