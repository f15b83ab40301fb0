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


def same(shown, printed, tolerance=0.3):
    """Whether two outputs agree but for spaces and rules, and numbers by this share: training differs by machine."""
    first, second = (re.sub(r"[\s-]{2,}|\s", " ", text).strip() for text in (shown, printed))
    if _NUMBER.sub("#", first) != _NUMBER.sub("#", second):
        return False
    pairs = zip(map(float, _NUMBER.findall(first)), map(float, _NUMBER.findall(second)), strict=True)
    return all(abs(one - other) <= tolerance * max(abs(one), abs(other)) + 0.02 for one, other in pairs)


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
