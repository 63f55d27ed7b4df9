"""Text of others in our own log."""


def one_line(text: str, limit: int = 1000) -> str:
    """Return text as one line of printable characters: what a client sends must not look like lines of our own.

    Args:
        limit: Longest text that is kept whole, in characters.
    """
    shown = text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(shown.split()))
