"""asyncpg: a prepared statement for everything, cursors, COPY, cancels by time-out, sixteen sessions at once."""

import asyncio
import io
import os

import asyncpg

ROUNDS = int(os.environ["ROUNDS"])


async def session(number):
    connection = await asyncpg.connect(ssl="require" if number % 2 else "disable")
    statement = await connection.prepare("SELECT $1::int + $2::int")
    for turn in range(ROUNDS):
        assert await statement.fetchval(number, turn) == number + turn
        assert await connection.fetchval("SELECT $1::text", f"{number}-{turn}") == f"{number}-{turn}"
        async with connection.transaction():
            assert len([r async for r in connection.cursor("SELECT generate_series(1, 200)", prefetch=30)]) == 200
        try:
            await connection.fetchval("SELECT 1/$1::int", 0)
            raise AssertionError("1/0 gave an answer")
        except asyncpg.DivisionByZeroError:
            pass
    out = io.BytesIO()
    await connection.copy_from_query("SELECT generate_series(1, 1000)", output=out)
    assert out.getvalue().count(b"\n") == 1000
    try:
        await connection.execute("SELECT pg_sleep(20)", timeout=0.2)
        raise AssertionError("not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await connection.fetchval("SELECT 'after'") == "after"
    await connection.close()


async def main():
    await asyncio.gather(*(session(number) for number in range(16)))
    print(f"asyncpg {asyncpg.__version__}: ok")


asyncio.run(main())
