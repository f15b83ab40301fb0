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
