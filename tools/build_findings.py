"""Write docs/reference/findings.md from the table of codes. Run by `make docs`."""

from pathlib import Path

from xds_server.codes import EXPLANATIONS

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "findings.md"


def page() -> str:
    """Return the page."""
    lines = [
        "# Findings of xds-server",
        "",
        "What `xds-server validate` and the server's log may say about a document. `IST` codes are those of `istioctl analyze`",
        "where the meaning is the same. Errors stop a publish, and clients keep the last good state; warnings and infos don't.",
        "",
        "| Code | Meaning |",
        "| --- | --- |",
        *(f"| {code} | {text} |" for code, text in sorted(EXPLANATIONS.items())),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(page())
