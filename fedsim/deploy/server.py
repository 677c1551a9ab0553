"""A coordinator's server: Flower's SuperLink on loopback, nginx in front of it, both looked after.

The SuperLink's one port carries also APIs that ask nobody who he is; so it listens on loopback, and nginx lets the
nodes' API through and nothing else. Both are children of this process: one that dies is started again, and none
outlives it.
"""

import os
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedsim.deploy import private_files, proxy, ready, status, superlink
from fedsim.deploy.certificates import days_left
from fedsim.deploy.children import Child, Restarts
from fedsim.deploy.control import HOST, Control, healthy
from fedsim.deploy.orphans import adopt_orphans, end_orphans
from fedsim.deploy.site import Site, flower_environment
from fedsim.errors import DeployError
from fedsim.signals import signals_to

Say = Callable[[str], None]
_GLANCE, _TICK, _DAY = 0.2, 15.0, 86400.0
_START = 60.0  # seconds in which a program must answer
_END = 15.0  # seconds in which a program must end
_LEFT = 5.0  # and what it leaves behind: a run's loop, which has all its whole rounds on disk and nobody to ask now
_MOST_ENDS, _SOUND_AFTER = 5, 600.0
_LARGEST_LOG = 16 * 1024**2


def serve(site: Site, say: Say) -> None:
    """Run a site's server until SIGTERM or SIGINT; call it in the main thread of a process of its own.

    Args:
        site: of which no other server runs.
        say: is told every event in one line.

    Raises:
        DeployError: it cannot start, or one of its programs ends again and again.
    """
    asked: list[int] = []
    with superlink.alone(site), signals_to(lambda number, frame: asked.append(number)):
        for line in (wrong := ready.problems(site))[:-1]:
            say(line)
        if wrong:
            raise DeployError(wrong[-1])
        os.umask(0o077)
        superlink.sweep(site)
        adopt_orphans()
        programs = _programs(site)
        watch = _Watch(site, say)
        try:
            while not asked:
                for program in programs:
                    program.tend(say, [each.pid for each in programs])
                    if not program.up:  # the proxy begins when there is a SuperLink behind it
                        break
                else:
                    watch.look(*programs)
                if not programs[0].up:
                    watch.lost()
                time.sleep(_GLANCE)
            say(f"ends ({signal.Signals(asked[0]).name})")
            watch.lost()
        finally:
            for program in reversed(programs):
                program.end()
            end_orphans((), _LEFT)
            superlink.sweep(site)
            with suppress(DeployError, OSError):
                status.write(site, status.facts(site, up=False))


class Program:
    """A child that is started, and started again when it has ended.

    Attributes:
        child: that runs or has just ended; None while there is none.
        up: whether it answers.
    """

    def __init__(self, name: str, start: Callable[[], Child], answers: Callable[[], bool], where: str) -> None:
        self.name, self._start, self._answers, self._where = name, start, answers, where
        self.child: Child | None = None
        self.up = False
        self._again = self._until = 0.0
        self._answered = False
        self._restarts = Restarts(_MOST_ENDS, _SOUND_AFTER)

    @property
    def pid(self) -> int:
        """Of the child; 0 while there is none."""
        return self.child.pid if self.child is not None else 0

    def tend(self, say: Say, kept: Sequence[int]) -> None:
        """Take one look, and do what is due.

        Raises:
            DeployError: it ends again and again.
        """
        now = time.monotonic()
        if self.child is None:
            if now >= self._again:
                self.child, self._until = self._start(), now + _START
                self._restarts.began()
        elif (code := self.child.exit_code) is not None:
            self._ended(f"ended {_how(code)}", say, kept)
        elif not self.up:
            if self._answers():
                self.up = self._answered = True
                say(f"{self.name} answers on {self._where}")
            elif now > self._until:
                self._ended(f"does not answer after {_START:.0f} s", say, kept)

    def end(self) -> None:
        """End it, if it runs."""
        if self.child is not None:
            self.child.stop(_END)
        self.child, self.up = None, False

    def _ended(self, how: str, say: Say, kept: Sequence[int]) -> None:
        child = self.child
        if child is None:
            return
        last = " / ".join(child.last_lines(3)) or "nothing"
        self.end()
        end_orphans([pid for pid in kept if pid != child.pid], _LEFT)
        pause = self._restarts.ended() if self._answered else None
        if pause is None:
            raise DeployError(f"{self.name} {how} and is not started again; {child.log} says: {last}")
        self._again = time.monotonic() + pause
        say(f"{self.name} {how}; it is started again in {pause:g} s")


class _Watch:
    """What a server looks at every 15 s while both programs answer."""

    def __init__(self, site: Site, say: Say) -> None:
        self._site, self._say = site, say
        self._next = self._noted = 0.0
        self._seen: Mapping[str, str] = {}
        self._trouble: str | None = None
        self._done: list[str] = []
        self._certificate = self._loaded = site.server_certificate.read_bytes()
        self._run: status.Run | None = None

    def lost(self) -> None:
        """Say how the run goes on that was on when the SuperLink ended, unless it has ended by itself since."""
        run, self._run = self._run, None
        if run is None:
            return
        with suppress(DeployError):
            last = status.facts(self._site, up=False).run
            if last is not None and last.status == "unknown":
                self._say(f"a run was on, which ends with it; go on with: fedsim resume {last.folder}")

    def look(self, inner: Program, outer: Program) -> None:
        """Take a look when it is time.

        Args:
            inner: the SuperLink.
            outer: the proxy.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _TICK
        try:
            for log in self._site.logs.glob("*.log"):
                shorten(log)
            self._certificates(inner, outer)
            if inner.up:
                self._nodes()
            trouble = ready.disk_problem(self._site)
            if now >= self._noted and (note := ready.certificate_note(self._site)) is not None:
                self._say(note)
                self._noted = now + _DAY
        except DeployError as error:
            trouble = str(error)
        except OSError as error:
            trouble = f"{error.filename or self._site.folder}: {error.strerror}"
        if trouble is not None and trouble != self._trouble:
            self._say(trouble)
        self._trouble = trouble

    def _nodes(self) -> None:
        """Let in who was admitted, say who came and who went."""
        done = superlink.synchronised(self._site)
        for line in done:
            if line not in self._done:
                self._say(line)
        self._done = done
        facts = status.facts(self._site)
        now = {node.name: node.status for node in facts.nodes}
        for name, state in now.items():
            if state != self._seen.get(name) and "online" in (state, self._seen.get(name)):
                self._say(f"{name} is {state}")
        self._seen = now
        self._run = facts.run if facts.run is not None and facts.run.status in status.ACTIVE else None
        status.write(self._site, facts)

    def _certificates(self, inner: Program, outer: Program) -> None:
        """Have a new certificate used: by the proxy at once, by the SuperLink when that ends no run."""
        found = self._site.server_certificate.read_bytes()
        if found != self._certificate and outer.child is not None:
            self._certificate = found
            os.kill(outer.child.pid, signal.SIGHUP)
            self._say("the proxy uses the new certificate; the SuperLink will when no run is on")
        if found != self._loaded and (days_left(self._loaded) < 0 or self._idle()):
            self._loaded = found
            inner.end()

    def _idle(self) -> bool:
        return all(run.status == "finished" for run in Control(self._site).runs())


def _programs(site: Site) -> tuple[Program, Program]:
    """The SuperLink, and the proxy in front of it."""
    # Where a ServerApp is asked for once a run, twenty looks a second cost a tenth of a core and gain nothing.
    own = {"FEDSIM_SITE": str(site.folder), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25"}
    environment = flower_environment(site.flower_home) | own
    private_files.folder(site.logs)
    site.write_connection()

    def start_superlink() -> Child:
        return Child("the SuperLink", superlink.command(site), environment, site.logs / "superlink.log")

    def start_proxy() -> Child:
        proxy.write(site)
        return Child("the proxy", proxy.command(site), environment, site.logs / "proxy.log")

    return (
        Program("the SuperLink", start_superlink, lambda: healthy(site), f"{HOST}:{site.superlink_port}"),
        Program("the proxy", start_proxy, lambda: _proxied(site), site.address),
    )


def _proxied(site: Site) -> bool:
    """Whether the proxy speaks TLS with the site's certificate."""
    address = {"0.0.0.0": HOST, "::": "::1"}.get(site.listen[0], site.listen[0])
    context = ssl.create_default_context(cafile=str(site.authority))
    try:
        with (
            socket.create_connection((address, site.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=site.host),
        ):
            return True
    except OSError:
        return False


def _how(code: int) -> str:
    """How a program ended."""
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"


def shorten(log: Path) -> None:
    """Keep a log that a program holds open from growing for ever; the last 16 MB before are kept beside it."""
    if log.stat().st_size > _LARGEST_LOG:
        try:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        finally:  # above all where the disk is full
            os.truncate(log, 0)
