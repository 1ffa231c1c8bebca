#!/usr/bin/env python3
"""Instructions for each transaction in user space, counted by callgrind: of the conductor by itself, and of the whole process
under pgbench. They repeat to a few in a thousand, on a busy machine too. Beside each is the one that was saved last
(bench/instructions.txt, which --save writes). The whole process is only comparable on one machine, by one compiler: how it
waits, and the C library's copies, are part of it. So the file says where its figures are from, and --against counts another
program here."""

import argparse
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile

import stage
from stage import Unavailable

HERE = pathlib.Path(__file__).parent
KNOWN = HERE / "instructions.txt"
KINDS = ("simple", "extended", "prepared")
FEW, MANY = 1000, 6000
# What may come on top of what is known before it is to be looked at, in percent.
TOLERANCE = 5.0


def counted(valgrind, folder, command, during=None):
    """How many instructions the command executes until it ends; `during` is called while it runs."""
    out = folder / "callgrind.out"
    out.unlink(missing_ok=True)
    words = [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", *map(str, command)]
    with open(folder / "log", "wb") as log:
        child = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            if during:
                during(child)
                child.send_signal(signal.SIGTERM)
            if child.wait(600) != 0:
                raise Unavailable(f"{command[0]} failed: {(folder / 'log').read_text(errors='replace')[-400:]}")
        finally:
            if child.poll() is None:
                child.kill()
    for line in out.read_text().splitlines():
        if line.startswith(("summary:", "totals:")):
            return int(line.split()[1])
    raise Unavailable("callgrind has counted nothing")


def of_conductor(valgrind, folder, kind):
    programs = (HERE.parent / "target/release/deps").glob("transactions-*")
    programs = [path for path in programs if path.suffix == ""]
    program = max(programs, key=lambda path: path.stat().st_mtime)
    few, many = (counted(valgrind, folder, [program, kind, count]) for count in (FEW, MANY))
    return (many - few) // (MANY - FEW)


def of_process(valgrind, folder, scene, program, kind):
    def run(count):
        port = stage.free_port()
        config = folder / "pgusher.toml"
        config.write_text(f"""[server]
listen = ["127.0.0.1:{port}"]
threads = 1
io = "epoll"  # valgrind holds all threads while one waits in io_uring_enter
auth_type = "trust"
[connections.postgres]
host = "127.0.0.1"
port = {scene.port}
username = "{stage.UPSTREAM_USER}"
sslmode = "disable"
pool_size = 4
[users.{stage.USER}]
""")
        config.chmod(0o600)

        def use(child):
            target = type("Running", (), {
                "alive": lambda self: child.poll() is None,
                "last_words": lambda self: (folder / "log").read_text(errors="replace")[-300:]})()
            wait(target, port)
            bench = [scene.binaries / "pgbench", "-n", "-S", "-M", kind, "-c", "1", "-t", count, "-h", "127.0.0.1",
                     "-p", port, "-U", stage.USER, "postgres"]
            done = subprocess.run([str(word) for word in bench], capture_output=True, text=True)
            if done.returncode != 0:
                raise Unavailable(f"pgbench failed: {done.stderr.strip()}")

        return counted(valgrind, folder, [program, "serve", config], use)

    few, many = run(FEW), run(MANY)
    return (many - few) // (MANY - FEW)


def wait(target, port):
    end = stage.time.monotonic() + 60
    while True:
        try:
            client = stage.crowd.Client("127.0.0.1", port, stage.USER, "", "postgres", timeout=20)
            client.query("SELECT 1")
            return client.close()
        except (OSError, stage.crowd.ServerError) as error:
            if stage.time.monotonic() > end or not target.alive():
                raise Unavailable(f"pgusher did not come up ({error}): {target.last_words()}") from error
            stage.time.sleep(0.2)


def here():
    """What the figures depend on besides the program."""
    def version(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    compiler = " ".join(version("rustc", "-V").split()[:2])
    return f"{compiler}, {version('valgrind', '--version')}, {'-'.join(platform.libc_ver())}, {cpu}"


def saved():
    """What was saved last, and where it is from."""
    lines = KNOWN.read_text().splitlines() if KNOWN.exists() else []
    made = next((line.removeprefix("# by ") for line in lines if line.startswith("# by ")), "")
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#")), made


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="these are those of a release")
    parser.add_argument("--program", default=HERE.parent / "target/release/pgusher", type=pathlib.Path)
    parser.add_argument("--against", type=pathlib.Path, metavar="PROGRAM",
                        help="another build, counted here in place of what was saved of the whole process")
    arguments = parser.parse_args()
    valgrind = stage.find_program("valgrind")
    if not valgrind:
        sys.exit("valgrind is needed: install the package valgrind.")
    known, made = saved()
    if made != here() and not arguments.against:
        print(f"saved by {made or 'nobody knows what'}; this is {here()}: the whole process may differ by some percent",
              file=sys.stderr)
    found = {}
    with tempfile.TemporaryDirectory(prefix="pgusher-instructions-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        scene = stage.Stage(folder)
        try:
            for kind in KINDS:
                found[f"conductor {kind}"] = of_conductor(valgrind, folder, kind)
            scene.start_postgres()
            scene._as_account(scene.binaries / "pgbench", "-i", "-q", "-s", "1", "-h", "127.0.0.1", "-p", scene.port,
                              "-U", stage.UPSTREAM_USER, "postgres")
            for kind in KINDS:
                found[f"process {kind}"] = of_process(valgrind, folder, scene, arguments.program, kind)
                if arguments.against:
                    known[f"process {kind}"] = of_process(valgrind, folder, scene, arguments.against, kind)
        finally:
            if scene.postgres:
                scene.postgres.stop()
    worse = False
    for what, count in found.items():
        before = int(known.get(what, 0))
        change = f"{100 * (count - before) / before:+.1f} % of {before}" if before else "not known before"
        worse |= bool(before) and count > before * (1 + TOLERANCE / 100)
        print(f"{what:20} {count:6}  {change}")
    if arguments.save:
        figures = "".join(f"{what} {count}\n" for what, count in found.items())
        KNOWN.write_text(f"# by {here()}\n{figures}")
    elif worse:
        sys.exit(f"more than {TOLERANCE:.0f} % more instructions than were saved last")


if __name__ == "__main__":
    try:
        main()
    except Unavailable as error:
        sys.exit(str(error))
