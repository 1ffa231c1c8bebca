"""SQLAlchemy on psycopg and asyncpg: its pool and pings, Core, ORM, batches, cursors, savepoints, SET, reflection."""

import asyncio
import concurrent.futures
import contextlib
import os

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

PREFIX, ROUNDS, WORKERS = f"sqlalchemy_{os.getpid()}", int(os.environ["ROUNDS"]), 5
POOL = {"pool_size": 3, "max_overflow": 0, "pool_pre_ping": True}
Base = orm.declarative_base()
Temporary = sa.Table(f"{PREFIX}_temporary", sa.MetaData(), sa.Column("a", sa.Integer), prefixes=["TEMPORARY"])
PROCESS = sa.select(sa.func.pg_backend_pid())


class Author(Base):
    __tablename__ = f"{PREFIX}_author"
    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.String(60), unique=True)
    books = orm.relationship("Book", cascade="all, delete-orphan", order_by="Book.id")


class Book(Base):
    __tablename__ = f"{PREFIX}_book"
    id = sa.Column(sa.Integer, primary_key=True)
    author_id = sa.Column(sa.ForeignKey(Author.id), nullable=False)
    about = sa.Column(JSONB)


@contextlib.contextmanager
def refused():
    try:
        yield
        raise AssertionError("a name was there twice")
    except sa.exc.IntegrityError as error:
        assert error.orig.sqlstate == "23505"


def batches(connection, name):
    names = [f"{name}/{number}" for number in range(1200)]
    written = sa.select(Author.name).where(Author.name.startswith(f"{name}/")).order_by(Author.id)
    with connection.begin() as transaction:
        returning = sa.insert(Author).returning(Author.name, sort_by_parameter_order=True)
        assert connection.scalars(returning, [{"name": each} for each in names]).all() == names
        with refused(), connection.begin_nested():
            connection.execute(sa.insert(Author), [{"name": f"{name}/more"}] * 2)
        parts = connection.scalars(written, execution_options={"yield_per": 500}).partitions()
        first = next(parts)
        assert connection.scalar(sa.text("SELECT count(*) FROM pg_cursors WHERE name <> ''")) == 1
        assert first + [each for part in parts for each in part] == names
        transaction.rollback()
    with connection.begin():
        assert connection.scalars(written).all() == []


def settings(connection, name):
    show = {it: sa.text(f"SHOW {it}") for it in ("transaction_isolation", "transaction_read_only", "sqlalchemy.mine")}
    with connection.begin():
        assert connection.scalar(show["transaction_isolation"]) == "read committed"
        connection.execute(sa.text(f"SET sqlalchemy.mine = '{name}'"))
    with connection.begin() as transaction:
        connection.execute(sa.text("SET sqlalchemy.mine = 'nobody'"))
        transaction.rollback()
    connection.execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True)
    with connection.begin():
        assert [connection.scalar(text) for text in show.values()] == ["serializable", "on", name]
        assert sa.inspect(connection).get_unique_constraints(Author.__tablename__)[0]["column_names"] == ["name"]
        book = sa.Table(Book.__tablename__, sa.MetaData(), autoload_with=connection)
        assert book.c.keys() == ["id", "author_id", "about"] and isinstance(book.c.about.type, JSONB)
        assert [key.column.table.name for key in book.foreign_keys] == [Author.__tablename__]


def unit_of_work(session, name):
    books = [{"title": f"{name} é", "pages": pages} for pages in range(3)]
    session.add(Author(name=name, books=[Book(about=about) for about in books]))
    session.commit()
    author = session.scalars(sa.select(Author).filter_by(name=name).with_for_update()).one()
    assert [book.about for book in author.books] == books
    with session.begin_nested():
        del author.books[1:]
    with refused():
        session.add(Author(name=name))
        session.commit()
    session.rollback()
    del author.books[1]
    session.commit()
    pages = sa.select(sa.func.sum(Book.about["pages"].as_integer())).join(Author).where(Author.name == name)
    assert session.scalar(pages) == 2
    session.delete(author)
    session.commit()
    assert session.scalar(pages) is None
    session.commit()


def temporary(connection):
    with connection.begin():
        Temporary.create(connection)
        process = connection.scalar(PROCESS)
    with connection.begin():
        connection.execute(sa.insert(Temporary), [{"a": 1}, {"a": 2}])
        assert connection.scalars(sa.select(Temporary.c.a)).all() == [1, 2] and connection.scalar(PROCESS) == process
        Temporary.drop(connection)
    with connection.begin():
        assert not sa.inspect(connection).has_table(Temporary.name)


def loss(engine):
    """The process that a temporary table ties a session to is ended; the pool learns by its ping that it is gone."""
    with engine.connect() as tied, tied.begin() as transaction:
        Temporary.create(tied)
        process, lost = tied.scalar(PROCESS), tied.connection.driver_connection
        transaction.commit()
        with engine.begin() as other:
            assert other.scalar(sa.select(sa.func.pg_terminate_backend(process)))
    for _ in range(POOL["pool_size"]):
        with engine.begin() as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1 and connection.connection.driver_connection is not lost


def work(session, number):
    engine = session.get_bind()
    for turn in range(ROUNDS):
        name = f"{engine.driver} {number}.{turn}"
        with engine.connect() as connection:
            batches(connection, name)
            if number == 0:  # one session at a time may keep its upstream connection (max_pinned)
                temporary(connection)
            settings(connection, name)
        unit_of_work(session, name)


async def work_async(engine):
    await asyncio.gather(*(AsyncSession(engine).run_sync(work, number) for number in range(WORKERS)))
    await AsyncSession(engine).run_sync(lambda session: loss(session.get_bind()))
    await engine.dispose()


engine = sa.create_engine("postgresql+psycopg://", **POOL)
Base.metadata.create_all(engine)
with concurrent.futures.ThreadPoolExecutor(WORKERS) as threads:
    list(threads.map(lambda number: work(orm.Session(engine), number), range(WORKERS)))
loss(engine)
asyncio.run(work_async(create_async_engine("postgresql+asyncpg://", **POOL)))
Base.metadata.drop_all(engine)
engine.dispose()
print(f"SQLAlchemy {sa.__version__}: ok")
