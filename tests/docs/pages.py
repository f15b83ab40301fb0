"""What is written in Markdown: the README and the pages under docs/."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


def python_blocks(path):
    """The blocks marked as ``python``.  What cannot run by itself is marked ``{code-block} python``."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def outputs(path):
    """For each block of Python the text block right after it, what it prints, or None."""
    pattern = r"^```python\n.*?^```\n(?:\n```text\n(.*?)^```$)?"
    return [shown or None for shown in re.findall(pattern, path.read_text(), flags=re.DOTALL | re.MULTILINE)]


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# What differs by machine stands after one of these, or before the unit of time; bytes, counts and ratios do not differ.
_INEXACT_AFTER = re.compile(r"(?:loss|accuracy|exact|lean|noise to signal|the data's(?: own:)?) $")
_INEXACT_BEFORE = re.compile(r" m?s\b")


def same(shown, printed, tolerance=0.3):
    """Whether two outputs agree but for spaces and rules, and losses, accuracies, noise and times by this share."""
    first, second = (re.sub(r"[\s-]{2,}|\s", " ", text).strip() for text in (shown, printed))
    if _NUMBER.sub("#", first) != _NUMBER.sub("#", second):
        return False
    for one, other in zip(_NUMBER.finditer(first), _NUMBER.finditer(second), strict=True):
        inexact = _INEXACT_AFTER.search(first[: one.start()]) or _INEXACT_BEFORE.match(first[one.end() :])
        a, b = float(one[0]), float(other[0])
        if abs(a - b) > (tolerance * max(abs(a), abs(b)) + 0.02 if inexact else 0):
            return False
    return True


def quoted_blocks(path):
    """Python that is shown and not run."""
    return re.findall(r"^```\{code-block\} python\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def named_files(path):
    """Scripts that the text tells readers to run."""
    pattern = r"(?:bash|python) ((?:scripts|benchmarks|docs)/[\w/]+\.(?:sh|py))"
    return re.findall(pattern, path.read_text())


def run(block, namespace, title):
    exec(compile(block, title, "exec"), namespace)


def namespace_of(file):
    """Load an example without running its ``main``."""
    return runpy.run_path(str(ROOT / file), run_name=Path(file).stem)
