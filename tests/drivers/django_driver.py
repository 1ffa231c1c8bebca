"""Django on psycopg, with its pool and with bound parameters: schema editor, ORM, cursors, locks, inspectdb."""

import concurrent.futures
import datetime
import io
import os
import sys

import django
from django.apps import AppConfig
from django.conf import settings

ROUNDS, WORKERS, LABEL = int(os.environ["ROUNDS"]), 6, f"django_{os.getpid()}"
ZONES = {"default": "Asia/Tokyo", "bound": "America/Caracas"}
SERVER = {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"],
          "PASSWORD": os.environ["PGPASSWORD"], "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"]}


class Library(AppConfig):
    label = LABEL


settings.configure(USE_TZ=True, INSTALLED_APPS=[Library(__name__, sys.modules[__name__])], DATABASES={
    "default": {**SERVER, "TIME_ZONE": ZONES["default"], "OPTIONS": {"pool": True}},
    "bound": {**SERVER, "TIME_ZONE": ZONES["bound"], "OPTIONS": {"server_side_binding": True}},
})
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import IntegrityError, connections, models, transaction  # noqa: E402


class Shelf(models.Model):
    name = models.CharField(max_length=40, unique=True)
    taken = models.IntegerField(default=0)


class Book(models.Model):
    shelf = models.ForeignKey(Shelf, models.CASCADE, related_name="books")
    about = models.JSONField()
    bought = models.DateTimeField()


def fetch(connection, query, *values):
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchone()[0]


def orm(alias, name):
    midnight = datetime.datetime(2026, 12, 31, tzinfo=datetime.timezone.utc)
    shelf = Shelf.objects.using(alias).create(name=name)
    books = Book.objects.using(alias)
    with transaction.atomic(alias):
        books.bulk_create([Book(shelf=shelf, about={"title": f"{name} é", "pages": {"count": n}}, bought=midnight)
                           for n in range(300)], batch_size=100)
        try:
            with transaction.atomic(alias):
                shelf.books.all().delete()
                Shelf.objects.using(alias).create(name=name)
            raise AssertionError("a name was there twice")
        except IntegrityError as error:
            assert error.__cause__.sqlstate == "23505"
        assert shelf.books.filter(about__pages__count__gte=250, about__title=f"{name} é").count() == 50
        assert sum(book.about["pages"]["count"] for book in shelf.books.iterator(chunk_size=70)) == 44850
    book = shelf.books.select_related("shelf").earliest("id")
    assert (book.shelf.name, book.bought) == (name, midnight)
    assert shelf.delete() == (301, {f"{LABEL}.Book": 300, f"{LABEL}.Shelf": 1})


def kept(alias, name):
    """What keeps the connection beyond a transaction: a cursor WITH HOLD and an advisory lock."""
    connection = connections[alias]
    Shelf.objects.using(alias).bulk_create(Shelf(name=f"{name}/{n}") for n in range(50))
    mine = Shelf.objects.using(alias).filter(name__startswith=f"{name}/")
    names = mine.order_by("id").values_list("name", flat=True).iterator(chunk_size=20)
    first = next(names)
    assert fetch(connection, "SELECT count(*) FROM pg_cursors WHERE is_holdable") == 1
    assert [first, *names] == [f"{name}/{n}" for n in range(50)]
    assert fetch(connection, "SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0
    process = fetch(connection, "SELECT pg_backend_pid() FROM pg_advisory_lock(hashtext(%s))", name)
    assert mine.delete()[0] == 50
    assert fetch(connection, "SELECT 0 + pg_backend_pid()") == process
    assert fetch(connection, "SELECT pg_advisory_unlock(hashtext(%s))", name) is True
    assert fetch(connection, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = %s", process) == 0


def work(number):
    for turn in range(ROUNDS):
        alias = list(ZONES)[(number + turn) % 2]
        connection, name = connections[alias], f"{LABEL} {number}.{turn}"
        orm(alias, name)
        if number == 0:  # one session at a time may keep its upstream connection (max_pinned)
            kept(alias, name)
        with transaction.atomic(alias):
            common = Shelf.objects.using(alias).select_for_update().get(name="common")
            common.taken += 1
            common.save()
        assert fetch(connection, "SHOW TimeZone") == ZONES[alias]
        connection.close()


with connections["default"].schema_editor() as editor:
    editor.create_model(Shelf)
    editor.create_model(Book)
Shelf.objects.create(name="common")
with concurrent.futures.ThreadPoolExecutor(WORKERS) as threads:
    list(threads.map(work, range(WORKERS)))
assert Shelf.objects.get().taken == WORKERS * ROUNDS
connection = connections["default"]
with connection.cursor() as cursor:
    found = connection.introspection.get_constraints(cursor, Book._meta.db_table)
    assert (Shelf._meta.db_table, "id") in [constraint["foreign_key"] for constraint in found.values()]
source = io.StringIO()
call_command("inspectdb", Shelf._meta.db_table, Book._meta.db_table, stdout=source)
for line in ("name = models.CharField(unique=True, max_length=40)", "about = models.JSONField()", "models.ForeignKey("):
    assert line in source.getvalue()
with connection.schema_editor() as editor:
    editor.delete_model(Book)
    editor.delete_model(Shelf)
assert LABEL not in "".join(connection.introspection.table_names())
connections.close_all()
connection.close_pool()
print(f"Django {django.get_version()}: ok")
