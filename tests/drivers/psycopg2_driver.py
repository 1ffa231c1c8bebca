"""psycopg2: simple queries, named cursors, COPY, and settings that a session keeps."""

import io
import os

import psycopg2

for turn in range(int(os.environ["ROUNDS"])):
    connection = psycopg2.connect("", application_name=f"psycopg2 {turn}", options="-c timezone=Asia/Tokyo")
    with connection, connection.cursor() as cursor:
        cursor.execute("SHOW application_name")
        assert cursor.fetchone() == (f"psycopg2 {turn}",)
        cursor.execute("SELECT extract(hour FROM timestamptz '2026-12-31 00:00:00Z')::int")
        assert cursor.fetchone() == (9,)
        connection.set_client_encoding("LATIN1")
        cursor.execute("SELECT %s", ("ü",))
        assert cursor.fetchone() == ("ü",)
        out = io.StringIO()
        cursor.copy_expert("COPY (SELECT generate_series(1, 1000)) TO STDOUT", out)
        assert out.getvalue().count("\n") == 1000
        with connection.cursor("named") as named:
            named.itersize = 7
            named.execute("SELECT generate_series(1, 50)")
            assert sum(row[0] for row in named) == 1275
    connection.close()
print(f"psycopg2 {psycopg2.__version__}: ok")
