"""How far a stream is: a line per tenth in a log, a bar in a terminal."""

from __future__ import annotations

import io

from fedprompt.cli.stream_progress import StreamProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_per_tenth() -> None:
    stream = io.StringIO()
    with StreamProgress("adapting", 2000, stream=stream) as progress:
        for number in range(2000):
            progress.step(f"{number} adapted")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "adapting: 200 of 2000 images, 199 adapted"
    assert lines[-1] == "adapting: 2000 of 2000 images, 1999 adapted"


def test_few_images_have_a_line_each() -> None:
    stream = io.StringIO()
    with StreamProgress("collecting", 2, stream=stream) as progress:
        progress.say("begun")
        progress.step()
        progress.step()
    assert stream.getvalue() == "begun\ncollecting: 1 of 2 images\ncollecting: 2 of 2 images\n"


def test_a_terminal_gets_a_bar_that_takes_brackets_as_they_are() -> None:
    stream = Terminal()
    with StreamProgress("adapting", 3, stream=stream) as progress:
        progress.say("[bold] is a name")
        progress.step("[red]")
    told = stream.getvalue()
    assert "1/3" in told
    assert "adapting, [red]" in told
    assert "[bold] is a name" in told
