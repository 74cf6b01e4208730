"""What the console costs: first paint, event-loop lag, key to paint, memory, long texts, training speed.

    python -m benchmarks.console [--only NAME ...]     (names: paint chart tokens memory key lag share)

Times are medians and percentiles; on a shared machine compare them with the baselines printed beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import math
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = str(ROOT)  # the consoles it starts have another working directory
# An installed program has its bytecode beside it, so the measured one must have it too.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

LAUNCH = (
    "import sys; from pathlib import Path; from mamba_tui.app import main, LaunchOptions; "
    "sys.exit(main(LaunchOptions(checkpoints=Path(sys.argv[1]), attach=sys.argv[2] or None)))"
)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, command: list[str], cwd: Path, size: tuple[int, int] = (120, 40)) -> None:
        self.begin = time.perf_counter()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
            os.execv(command[0], command)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def wait_for(self, text: bytes, seconds: float = 30.0) -> float:
        """Seconds until the output contains a text."""
        begin, seen = time.perf_counter(), b""
        while text not in seen:
            left = seconds - (time.perf_counter() - begin)
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise TimeoutError(f"{text!r} did not come; the last output was {seen[-300:]!r}")
            seen = seen[-4096:] + os.read(self.fd, 65536)
        return time.perf_counter() - begin

    def cpu_seconds(self) -> float:
        """Processor time so far: what starting would take on an idle core."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def drain(self, seconds: float = 0.0) -> None:
        """Read everything that arrives within a time."""
        end = time.perf_counter() + seconds
        while select.select([self.fd], [], [], max(0.0, end - time.perf_counter()))[0]:
            os.read(self.fd, 65536)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def paint(times: int = 15) -> None:
    """Command to first paint, compared with a bare Textual application and the import of torch."""
    bare = (
        "from textual.app import App\nfrom textual.widgets import Static\n"
        "class A(App):\n    def compose(self): yield Static('hourglass')\nA().run()"
    )
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "bare Textual application": [sys.executable, "-c", bare],
            "the console": [sys.executable, "-c", LAUNCH, folder, ""],
            "mamba-tui launch": [
                sys.executable,
                "-m",
                "mamba_tui.cli.main",
                "launch",
                "--checkpoints",
                folder,
            ],
        }
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(times):
            for name, command in commands.items():
                terminal = Terminal(command, Path(folder), (80, 24))
                terminal.wait_for(b"hourglass")
                results[name].append((time.perf_counter() - terminal.begin, terminal.cpu_seconds()))
                terminal.close()
    for name, pairs in results.items():
        wall, cpu = zip(*pairs)
        print(
            f"  first paint, {name:<26} {statistics.median(wall):.3f} s (best {min(wall):.3f}), "
            f"of processor time {statistics.median(cpu):.2f} s"
        )


def chart() -> None:
    """Drawing 120 x 30 cells of 2 series x 10,000 points."""
    import numpy as np
    from textual.geometry import Size

    from mamba_tui.widgets.chart.frame import ChartFrame, Line, Look, View, x_extent

    x = np.arange(10_000.0)
    y = 2 + 6 * np.exp(-x / 800) + np.random.default_rng(1).normal(0, 0.2, 10_000)
    lines = [Line("training", x, y, "#56b4e9", y - 0.3, y + 0.3), Line("validation", x, y + 0.1, "#e69f00")]
    seconds = []
    for _ in range(300):
        begin = time.perf_counter()
        ChartFrame(Size(120, 30), "Loss", "", "", lines, [], View(x_extent(lines)), Look()).strips()
        seconds.append(time.perf_counter() - begin)
    print(f"  chart 120x30, 2 x 10,000 points          {statistics.median(seconds) * 1e3:.2f} ms")


def start_run(folder: Path, max_iters: int = 1_000_000) -> object:
    from core.config.changes import replace
    from core.config.files import preset
    from core.data.sample_corpus import has_texts, write_sample
    from core.runs import EventReader, prepare_run, start_trainer

    if not has_texts(folder / "texts"):
        write_sample(folder / "texts")
    config = replace(
        preset("book"), dataset_dir=str(folder / "texts"), n_embd=[64, 48, 64], n_head=4,
        attention_type=["mamba", "standard", "mamba"], batch_size=4, block_size=64, tokenizer="byte",
        max_iters=max_iters, eval_interval=100_000, sample_tokens=0, threads=1, checkpoint_interval=200,
    )  # fmt: skip
    run = prepare_run(folder / "runs", "measured", config)
    start_trainer(run)
    reader = EventReader(run.events_path)
    deadline = time.monotonic() + 120
    while not any(event.kind == "checkpoint" for event in reader.poll()):
        if time.monotonic() > deadline:
            raise TimeoutError(run.log_path.read_text()[-2000:])
        time.sleep(0.1)
    return run


def key(presses: int = 60) -> None:
    """From a key to the screen it changes, in a terminal, while a run trains at full speed."""
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(Path(folder))
        terminal = Terminal(
            [sys.executable, "-c", LAUNCH, str(Path(folder) / "runs"), run.name], Path(folder)
        )
        try:
            terminal.wait_for(b"Gradient norm")
            terminal.drain(3.0)
            seconds = []
            for _ in range(presses):
                os.write(terminal.fd, b"l")
                seconds.append(terminal.wait_for(b"(log)"))
                terminal.drain(0.1)
                os.write(terminal.fd, b"l")
                terminal.drain(0.25)
        finally:
            terminal.close()
            end_run(run)
    print(
        f"  key to paint while a run trains          p50 {statistics.median(seconds) * 1e3:.0f} ms, "
        f"p95 {percentile(seconds, 0.95) * 1e3:.0f} ms"
    )


def end_run(run: object) -> None:
    from core.runs import is_alive, send_command

    if is_alive(run):
        send_command(run, "stop")
    while is_alive(run):
        time.sleep(0.1)


# The same loop with nothing to do: the lag that the rest of the machine causes.
CONTROL = """
import asyncio, time
async def look():
    lags, end = [], time.perf_counter() + {seconds}
    while time.perf_counter() < end:
        begin = time.perf_counter()
        await asyncio.sleep(0.005)
        lags.append(time.perf_counter() - begin - 0.005)
    lags.sort()
    print(f"p50 {{lags[len(lags) // 2] * 1e3:.1f}} ms, p99 {{lags[int(len(lags) * 0.99)] * 1e3:.1f}} ms")
asyncio.run(look())
"""


def lag(seconds: float = 20.0) -> None:
    """Lag of the event loop while a run trains at full speed and a checkpoint generates text."""
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(Path(folder))
        try:
            asyncio.run(watch_lag(Path(folder) / "runs", run.name, seconds))
        finally:
            end_run(run)


async def watch_lag(root: Path, name: str, seconds: float) -> None:
    from mamba_tui.app import LaunchOptions, MambaTUI
    from mamba_tui.widgets.knobs import Knobs

    async def look(what: str) -> None:
        """How late the event loop wakes up, and the processor time it spends meanwhile."""
        late: list[float] = []
        spent: list[float] = []
        command = [sys.executable, "-c", CONTROL.format(seconds=seconds)]
        control = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        end, before = time.perf_counter() + seconds, time.thread_time()
        while time.perf_counter() < end:
            begin, used = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - begin - 0.005)
            spent.append(time.thread_time() - used)
        share = (time.thread_time() - before) / seconds
        idle = (await asyncio.to_thread(control.communicate))[0].strip()
        print(
            f"  event loop, {what:<24} late p50 {percentile(late, 0.5) * 1e3:.1f} ms, "
            f"p99 {percentile(late, 0.99) * 1e3:.1f} ms; of that its own work p99 "
            f"{percentile(spent, 0.99) * 1e3:.1f} ms; {share:.1%} of a core\n"
            f"    an idle loop beside it: {idle}"
        )

    app = MambaTUI(LaunchOptions(checkpoints=root, attach=name))
    async with app.run_test(size=(120, 40)) as pilot:
        await asyncio.sleep(3.0)
        await look("charts, a run trains")
        await pilot.press("f5")
        await pilot.pause(1.0)
        app.query_one(Knobs).values["max_new_tokens"] = 20_000
        await pilot.press("a", "enter")
        pane = app.pane
        while not pane.sides[0].count:
            await asyncio.sleep(0.1)
        await look("generating, a run trains")
        print(f"    {pane.sides[0].count:,} tokens were generated meanwhile")


def share(pairs: int = 60, length: float = 2.5) -> None:
    """Training throughput with the console attached and without it, in pairs of windows."""
    from core.runs import EventReader

    with tempfile.TemporaryDirectory() as folder:
        run = start_run(Path(folder))
        command = [sys.executable, "-c", LAUNCH, str(Path(folder) / "runs"), run.name]
        terminal = Terminal(command, Path(folder))
        reader = EventReader(run.events_path)
        counts: dict[bool, list[float]] = {True: [], False: []}
        try:
            terminal.wait_for(b"Gradient norm")
            terminal.drain(5.0)
            reader.poll()
            for window in range(2 * pairs):
                attached = (window % 2 == 0) == (window // 2 % 2 == 0)
                os.kill(terminal.pid, signal.SIGCONT if attached else signal.SIGSTOP)
                terminal.drain(0.5)
                reader.poll()
                begin = time.perf_counter()
                terminal.drain(length)
                steps = [event for event in reader.poll() if event.kind == "step"]
                taken = time.perf_counter() - begin
                counts[attached].append(sum(event.steps for event in steps) / taken)
            os.kill(terminal.pid, signal.SIGCONT)
        finally:
            terminal.close()
            end_run(run)
    ratios = [with_console / alone for with_console, alone in zip(counts[True], counts[False])]
    error = statistics.stdev(ratios) / math.sqrt(pairs)
    with_console, alone = (statistics.median(counts[attached]) for attached in (True, False))
    print(
        f"  steps a second, alone {alone:.1f}, with the console {with_console:.1f} (medians); "
        f"ratio of a pair of windows: median {statistics.median(ratios):.1%}, "
        f"mean {statistics.mean(ratios):.1%} +- {error:.1%} (standard error of {pairs} pairs)"
    )


def rss() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return math.nan


def memory(events: int = 1_000_000) -> None:
    """A day of training: a million events read while the charts are on screen."""
    code = f"import benchmarks.console as console; console.memory_here({events})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def memory_here(events: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(watch_memory(Path(folder), events))


async def watch_memory(root: Path, events: int) -> None:
    import json

    from core.config.changes import replace
    from core.config.schema import RunConfig
    from core.runs import prepare_run
    from mamba_tui.app import LaunchOptions, MambaTUI

    run = prepare_run(root, "day", replace(RunConfig(), max_iters=10 * events))
    first = {"kind": "run", "time": 0.0, "schema": 1, "run": "day", "pid": 1, "boot_id": "", "started": 0.0,
             "device": "cpu", "parameters": 1, "vocab_size": 1, "tokens_per_step": 1,
             "max_iters": 10 * events, "resumed_from": None, "versions": {}, "config": {},
             "changes": {}}  # fmt: skip
    app = MambaTUI(LaunchOptions(checkpoints=root, attach="day"))
    with open(run.events_path, "w") as file:
        file.write(json.dumps(first) + "\n")
        file.flush()
        async with app.run_test(size=(120, 40)):
            figures = []
            for tenth in range(10):
                for index in range(events // 10):
                    step = tenth * (events // 10) + index + 1
                    value = 2 + math.exp(-step / events)
                    file.write(
                        f'{{"kind":"step","time":{step}.5,"step":{step},"steps":1,"loss":{value},"loss_min":1.0,'
                        f'"loss_max":4.0,"learning_rate":0.001,"gradient_norm":1.0,"tokens_per_second":1000.0,'
                        f'"tokens":{step},"data_wait":0.0,"device_memory":null,"epoch":0.5}}\n'
                    )
                    if step % 1000 == 0:
                        file.write(
                            f'{{"kind":"eval","time":{step}.6,"step":{step},"train_loss":{value},'
                            f'"validation_loss":{value},"bits_per_byte":1.0,"train_bits_per_byte":1.0,'
                            f'"seconds":1.0}}\n{{"kind":"sample","time":{step}.7,"step":{step},"prompt":"",'
                            f'"text":"{"word " * 100}"}}\n'
                        )
                file.flush()
                while app.run_client.history is None or app.run_client.history.step < (tenth + 1) * (
                    events // 10
                ):
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.3)
                figures.append(rss())
    print(
        "  resident memory (MB) after each tenth of 1,000,000 events: "
        + " ".join(f"{f:.0f}" for f in figures)
    )


def tokens(count: int = 20_000) -> None:
    """A long text: 20 tokens at a time appended and drawn."""
    asyncio.run(write_tokens(count))


async def write_tokens(count: int) -> None:
    from textual.app import App, ComposeResult

    from mamba_tui.widgets.token_view import Token, TokenView

    class TokenApp(App[None]):
        def compose(self) -> ComposeResult:
            yield TokenView(id="view")

    words = ["the ", "quick", " brown ", "fox\n", "jumps ", "over ", "lazy", "ness "]
    async with TokenApp().run_test(size=(120, 40)) as pilot:
        view = pilot.app.query_one(TokenView)
        view.surprise = True
        seconds = []
        for start in range(0, count, 20):
            batch = [Token(words[n % 8], 0.3, (), (), 1, n) for n in range(start, start + 20)]
            begin = time.perf_counter()
            view.append(batch)
            for y in range(view.size.height):
                view.render_line(y)
            seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        await pilot.resize_terminal(90, 40)
        await pilot.pause()
        wrapped = time.perf_counter() - begin
    early, late = statistics.median(seconds[10:60]), statistics.median(seconds[-50:])
    print(
        f"  20 tokens appended and drawn: {early * 1e3:.2f} ms at the start, {late * 1e3:.2f} ms after "
        f"{count:,} tokens; all wrapped anew at another width in {wrapped * 1e3:.0f} ms"
    )


MEASURES = {measure.__name__: measure for measure in (paint, chart, tokens, memory, key, lag, share)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(MEASURES), default=list(MEASURES))
    for name in parser.parse_args().only:
        print(f"{name}: {(MEASURES[name].__doc__ or '').splitlines()[0]}")
        MEASURES[name]()


if __name__ == "__main__":
    main()
