"""Numbers of things in messages for people."""

from __future__ import annotations


def counted(number: int, noun: str, verb: tuple[str, str] | None = None) -> str:
    """Return a number and what it counts: ``1 job``, ``2 jobs``, ``1 job is``, ``2 jobs are``.

    Args:
        number: The number.
        noun: What is counted, in the singular.
        verb: The verb that follows, in the singular and the plural; None for no verb.
    """
    one = number == 1
    ending = "" if one else "es" if noun.endswith("ch") else "s"
    following = "" if verb is None else f" {verb[0] if one else verb[1]}"
    return f"{number} {noun}{ending}{following}"


def which_of(number: int, given: int, noun: str) -> str:
    """Return the subject of a message about wrong arguments: ``the given job is``, ``1 of the 2 given jobs is``.

    Args:
        number: The number of arguments that are wrong; at least one.
        given: The number of all given arguments.
        noun: The kind of the arguments, in the singular.
    """
    if given == 1:
        return f"the given {noun} is"
    return f"{number} of the {given} given {noun}s {'is' if number == 1 else 'are'}"
