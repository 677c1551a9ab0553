"""What an audit found, in one HTML file that needs nothing else."""

import html
from pathlib import Path

from fedsim.audit.membership import MEANING, Membership, membership_table
from fedsim.audit.one_run import OneRun, meaning, one_run_table
from fedsim.errors import RunFolderError

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --page: #ffffff; --line: #d5d8dc; --good: #1a7f4b; --bad: #c0271e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --page: #16181c; --line: #3a3f46; --good: #58c78f; --bad: #ff8278 } }
body { color: var(--ink); background: var(--page); font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
  max-width: 46rem; padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 0 .2rem }
p { margin: .4rem 0 }
.verdict { font-size: 1.6rem; font-weight: 600 }
.good { color: var(--good) } .bad { color: var(--bad) }
svg { width: 100%; height: auto; margin: 1rem 0 } svg text { fill: currentColor }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-top: 1px solid var(--line) }
th { font-weight: 600; white-space: nowrap }
@media print { body { margin: 0; max-width: none } }
"""


def page(found: OneRun | Membership) -> str:
    """The whole page, at most one of paper."""
    from fedsim.audit.pictures import picture, svg  # matplotlib takes a second to import

    if isinstance(found, OneRun):
        what = "rows" if found.level == "example" else "clients"
        title, table, text = f"Audit of {what}: {found.title}", one_run_table(found), meaning(found)
        verdict = f'<p class="verdict {"good" if found.ok else "bad"}">{html.escape(found.verdict)}</p>'
    else:
        title, table, text = f"Membership inference: {found.title}", membership_table(found), MEANING
        verdict = f'<p class="verdict">AUC {found.auc[0]:.3f}</p>'
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>\n" for name, value in table)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n{verdict}\n<p>{html.escape(text[:1].upper() + text[1:])}.</p>\n"
        f"{svg(picture(found))}\n<table>\n{rows}</table>\n</body></html>\n"
    )


def check(path: Path) -> None:
    """Refuse, before anything runs, a place where `write` could not write.

    Raises:
        RunFolderError: there is no such folder, or a folder is in the file's place.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise RunFolderError(f"--out {path}: give a file in a folder that is there")


def write(found: OneRun | Membership, path: Path) -> None:
    """Write the page; a file that is there is replaced.

    Raises:
        RunFolderError: the file cannot be written.
    """
    try:
        path.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"--out {path}: cannot be written ({error.strerror}); choose another place") from error
