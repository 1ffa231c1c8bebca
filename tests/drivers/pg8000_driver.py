"""pg8000: pure Python, unnamed and named statements."""

import os

import pg8000.native

connection = pg8000.native.Connection(
    os.environ["PGUSER"], host=os.environ["PGHOST"], port=int(os.environ["PGPORT"]),
    database=os.environ["PGDATABASE"], password=os.environ["PGPASSWORD"])
statement = connection.prepare("SELECT CAST(:a AS int) * 2")
for turn in range(int(os.environ["ROUNDS"])):
    assert statement.run(a=turn) == [[turn * 2]]
    assert connection.run("SELECT CAST(:a AS text)", a=f"n{turn}") == [[f"n{turn}"]]
    connection.run("START TRANSACTION")
    try:
        connection.run("SELECT 1/0")
        raise AssertionError("1/0 gave an answer")
    except pg8000.exceptions.DatabaseError as error:
        assert error.args[0]["C"] == "22012"
    connection.run("ROLLBACK")
statement.close()
connection.close()
print(f"pg8000 {pg8000.__version__}: ok")
