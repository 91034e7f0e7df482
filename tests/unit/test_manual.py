"""The manual page: without a warning, and with every command and option that there is."""

from __future__ import annotations

import re
import subprocess
from typing import Any, cast

import pytest
import typer

from intxtrace.cli import app
from tests import manual


@pytest.fixture(scope="module")
def page() -> str:
    return manual.PAGE.read_text()


def test_it_is_what_the_commands_say(page: str) -> None:
    assert page == manual.page(), "make man makes it anew"


@pytest.fixture(scope="module")
def shown(page: str) -> str:
    """The page as man shows it."""
    command = ["groff", "-man", "-Tascii", "-ww", "-rHY=0", "-rLL=200n", "-P-cbou"]
    done = subprocess.run(command, input=page, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_nothing_is_wrong_with_it(page: str) -> None:
    done = subprocess.run(["mandoc", "-Tlint"], input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_command_and_option_is_in_it(shown: str) -> None:
    commands = cast(Any, typer.main.get_command(app)).commands
    parts = re.split(r"^   (\w+)$", shown.partition("\nCOMMANDS")[2].partition("\nOVERHEAD")[0], flags=re.M)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(texts) == list(commands)
    for name, command in commands.items():
        words = " ".join(texts[name].split())
        assert f"intxtrace {name}" in words
        assert " ".join(command.help.split()) in words
        for parameter in command.params:
            assert " ".join(parameter.help.split()) in words
            if parameter.param_type_name == "option":
                value = "" if parameter.is_flag else f" {parameter.metavar}"
                assert re.search(rf"^ +{re.escape(', '.join(parameter.opts) + value)}\b", texts[name], re.M), parameter
        examples = command.epilog.partition("Examples:\n")[2].splitlines()
        assert re.findall(r"^ {10,}(.*intxtrace.*)$", texts[name].partition("Examples:")[2], re.M) == [
            line.strip() for line in examples
        ]


def test_what_a_manual_says(shown: str) -> None:
    found = re.findall(r"^([A-Z ]+)$", shown, re.M)
    assert found[:4] == ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"]
    assert {"COMMANDS", "OVERHEAD", "EXIT STATUS", "FILES", "ENVIRONMENT", "SEE ALSO"} <= set(found)
    assert "@" not in shown
