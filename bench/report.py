"""Turns the samples of a benchmark into docs/benchmarks.md."""

import dataclasses
import datetime
import os
import pathlib
import re
import statistics

import crowd

BASELINE = "pgbouncer"


@dataclasses.dataclass
class Kind:
    """A family of works that share a table: what their rate and cost count."""

    title: str
    rate: str | None
    cost: str
    explanation: str
    scale: float = 1.0  # a sample's cost is divided by this for the table
    latency: bool = True


KINDS = {
    "transactions": Kind(
        "Transactions", "tps", "CPU s / million",
        "`pgbench -S` on scale 10, two threads; the number behind the name is how many clients. `tls` is the simple "
        "protocol with client TLS, which HAProxy passes through to PostgreSQL unread; `unix` has the proxy reach PostgreSQL by "
        "a unix socket. Logins are by `trust`, so that "
        "they cost next to nothing here."),
    "copy": Kind(
        "COPY", "MB/s", "CPU s / GB",
        "One client that reads or writes whole pieces of a stream: out, `pgbench_accounts` (rows of about 100 bytes) and "
        "rows of 1 MB; in, rows of 100 bytes into a table that keeps none, in frames of 8,000 bytes (as psql since 15 sends "
        "a file) and, as `copy-in-rows`, in a frame each (as older psql and many drivers do). A GB is 10^9 bytes on the "
        "wire.",
        latency=False),
    "login": Kind(
        "Login", "logins/s", "CPU ms / login",
        "`pgbench -S -C` with two clients: connect, SCRAM-SHA-256 against a stored verifier, one SELECT, disconnect. "
        "The rate and the latency are mostly libpq's own PBKDF2; the CPU is the proxy's alone."),
    "idle": Kind(
        "Idle clients", None, "KiB / client",
        "Growth of the proxy's proportional set size over clients that have logged in by SCRAM and run a query each, "
        "divided by their number, on a process that had seen 20 such clients before. Memory of the kernel is not in it.",
        scale=1024.0, latency=False),
}

@dataclasses.dataclass
class Goal:
    """What a row must reach, and what it is to reach one day: at most so much, or for a rate at least, of the baseline's."""

    words: str
    work: str
    must: float
    aim: float | None = None
    what: str = "cost"  # of a Sample; as a ratio to the baseline's

    def bound(self, value):
        if value is None:
            return "–"
        sign = "≥" if self.what == "rate" else "≤"
        return f"{sign} {value:.2f} ×"

    def values(self, samples, target):
        return ratios(samples, self.work, target, self.what)

    def verdict(self, values, bound):
        if not values:
            return "not measured"
        middle = statistics.median(values)
        return "met" if (middle >= bound if self.what == "rate" else middle <= bound) else "**not met**"


GOALS = [
    Goal("simple, 16 clients (within the pool)", "simple-16", 0.82, 0.75),
    Goal("simple, 100 clients (more than the pool)", "simple-100", 0.68, 0.58),
    Goal("extended, 16", "extended-16", 0.85, 0.76),
    Goal("extended, 100", "extended-100", 0.75, 0.65),
    Goal("prepared, 16", "prepared-16", 0.66, 0.58),
    Goal("prepared, 100", "prepared-100", 0.56, 0.48),
    Goal("client TLS, simple, 16", "tls-16", 0.80, 0.70),
    Goal("upstream by unix socket, simple, 16", "unix-16", 0.80, 0.70),
    Goal("COPY out, short rows", "copy-out-short", 0.75, 0.60),
    Goal("COPY out, 1 MB rows", "copy-out-wide", 0.25, 0.20),
    Goal("COPY in, frames of 8,000 bytes", "copy-in", 0.35, 0.30),
    Goal("COPY in, a frame a row", "copy-in-rows", 0.60),
    Goal("rate: simple, 100", "simple-100", 1.2, 1.3, what="rate"),
    Goal("rate: prepared, 100", "prepared-100", 1.5, 1.7, what="rate"),
    Goal("99th percentile: prepared, 100", "prepared-100", 0.8, 0.7, what="p99"),
    Goal("login (SCRAM, stored verifier)", "login", 0.9),
    Goal("idle client, plain", "idle", 1.0),
    Goal("idle client, TLS", "idle-tls", 0.6),
]

# What `io = "epoll"` with one thread may cost, at most.
ON_EPOLL = {"simple-16": 0.97}


def number(value):
    """Three significant digits at least, and no false precision."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def spread(values):
    """The median, with the least and the greatest when there are several."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}–{number(max(values))})"


def anonymous(words):
    """Without this machine's name and the folders of its paths."""
    return re.sub(r"(/[\w.+-]+)+/", "", words.replace(os.uname().nodename, "HOST"))


def column(rounds, name, scale=1.0):
    values = [getattr(sample, name) if sample else None for sample in rounds]
    return [None if value is None else value / scale for value in values]


def ratios(samples, work, target, name="cost"):
    """The target's value over the baseline's, round by round."""
    pairs = zip(column(samples[work, target], name), column(samples[work, BASELINE], name))
    return [ours / theirs for ours, theirs in pairs if ours is not None and theirs]


def brief(kind_name, sample):
    """A sample in a line, for whoever watches."""
    kind = KINDS[kind_name]
    cost = sample.cost and sample.cost / kind.scale
    parts = [f"{number(sample.rate)} {kind.rate}" if kind.rate else "", f"{number(cost)} {kind.cost}"]
    parts.append(f"p50 {number(sample.p50)} p99 {number(sample.p99)} ms" if sample.p50 else "")
    return "   ".join(filter(None, parts))


def machine(stage):
    """What must be known of the machine to compare, and nothing that names it; (what, value) pairs."""
    processor = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1))
    client = crowd.Client("127.0.0.1", stage.port, "pool", "", "postgres")
    client.start_query("SHOW server_version")
    postgres = client.receive_until(b"D")[0][6:].decode()
    client.close()
    return [
        ("CPU", processor.group(1) if processor else os.uname().machine),
        ("cores", len(os.sched_getaffinity(0))),
        ("memory", f"{memory / 1024**2:.0f} GiB"),
        ("kernel", f"{os.uname().sysname} {os.uname().release}"),
        ("PostgreSQL", postgres),
    ]


def table(titles, rows):
    lines = ["| " + " | ".join(titles) + " |", "|" + "|".join("---" for _ in titles) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def kind_section(kind, works, targets, samples):
    titles = ["work", "target"] + ([kind.rate] if kind.rate else []) + (["p50 ms", "p99 ms"] if kind.latency else [])
    titles += [kind.cost, f"cost ÷ {BASELINE}'s"] + ([f"rate ÷ {BASELINE}'s"] if kind.rate else [])
    rows = []
    for work in works:
        for target in targets:
            rounds = samples[work.name, target.name]
            if not any(rounds):
                continue
            row = [work.name, target.name]
            row += [spread(column(rounds, "rate"))] if kind.rate else []
            row += [spread(column(rounds, name)) for name in ("p50", "p99")] if kind.latency else []
            row += [spread(column(rounds, "cost", kind.scale)), spread(ratios(samples, work.name, target.name))]
            row += [spread(ratios(samples, work.name, target.name, "rate"))] if kind.rate else []
            rows.append(row)
    return f"## {kind.title}\n\n{kind.explanation}\n\n{table(titles, rows)}"


def goals_section(samples, targets):
    has_epoll = any(target.name == "epoll" for target in targets)
    rows = []
    for goal in GOALS:
        values = goal.values(samples, "pgusher")
        epoll = goal.values(samples, "epoll")
        row = [goal.words, goal.bound(goal.must), goal.bound(goal.aim), spread(values), goal.verdict(values, goal.must)]
        if has_epoll:
            bound = goal.what == "cost" and ON_EPOLL.get(goal.work, 1.0)
            worse = bound and epoll and goal.verdict(epoll, bound) != "met"
            row.append(f"**{spread(epoll)}**" if worse else spread(epoll))
        rows.append(row)
    words = ("pgusher as it comes (`threads` unset, `io = \"auto\"`), as a ratio to PgBouncer's, paired within a round. "
             "The last column is one thread by `io = \"epoll\"`, which should cost no more than PgBouncer (for simple, 16 clients: at "
             f"most {ON_EPOLL['simple-16']} ×). A cost above that is in bold. "
             "At one client all are alike; nothing is claimed there.")
    titles = ["work", "must", "aim", "measured", "verdict"]
    titles += ["by epoll"] if has_epoll else []
    return f"## Targets\n\n{words}\n\n{table(titles, rows)}"


def render(machine_facts, options, targets, works, samples, notes, drawn):
    today = datetime.date.today().isoformat()
    facts = machine_facts + [(target.name, target.version) for target in targets if target.name != "direct"]
    sections = [
        "# Benchmarks",
        "<!-- Written by bench/bench.py; do not edit. -->",
        f"Measured on {today}. Interleaved rounds: {options.rounds}; seconds for each measurement: {options.seconds}; idle "
        f"clients: {options.clients}. "
        "Everything shares one machine over loopback, so the rates say how the machine was divided; the CPU that the "
        "proxy's process took (`/proc`) says what it costs. Cells are the median of the rounds (least–greatest); ratios "
        "are taken within a round first. The proxies with a pool have 20 connections, transaction pooling. `epoll` is "
        "pgusher with `io = \"epoll\"` and one thread; PgBouncer and HAProxy run one thread, too. `pgbouncer-2` is two processes "
        "of PgBouncer on one port (`so_reuseport`), each with half of the connections.",
        table(["machine", ""], facts),
        f"To repeat: `make bench ARGS='--rounds {options.rounds} --seconds {options.seconds} --clients {options.clients}'`. "
        "`PGBOUNCER=path` takes another PgBouncer than the distribution's (build it with `-O2`), `--quick` shows within a "
        "minute that it runs, `--only` and `--targets` narrow it.",
        goals_section(samples, targets),
        "\n\n".join(f"![{title}]({file})" for file, title, _ in drawn),
    ]
    for name, kind in KINDS.items():
        family = [work for work in works if work.kind == name]
        if family:
            sections.append(kind_section(kind, family, targets, samples))
    if notes:
        sections.append("## Not measured\n\n" + "\n".join(f"- {anonymous(note)}" for note in notes))
    return "\n\n".join(sections)


# What the other benchmarks measure stands behind it in the same file, a section each, in this order.
OTHERS = ("Threads", "Overload", "Undisturbed", "Memory", "Hand-overs between users")


def sections(text):
    """The sections of the other benchmarks, by their titles."""
    found = re.split(r"^## (.+)\n", text, flags=re.M)
    return {title: body.strip() for title, body in zip(found[1::2], found[2::2]) if title in OTHERS}


def whole(text, others):
    kept = [f"## {title}\n\n{others[title]}" for title in OTHERS if title in others]
    return "\n\n".join([text.strip(), *kept]) + "\n"


def write(path, text):
    """All but the sections of the others, which stay as they are."""
    path.write_text(whole(text, sections(path.read_text()) if path.exists() else {}))


def write_section(path, title, text):
    """That section alone."""
    old = path.read_text() if path.exists() else ""
    first = min((old.index(f"## {known}\n") for known in OTHERS if f"## {known}\n" in old), default=len(old))
    path.write_text(whole(old[:first], sections(old) | {title: text.strip()}))
