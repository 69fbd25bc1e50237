"""The counts that keep the house small, and what is beyond them: `python benchmarks/house.py`, part of `make lint`.

An issue that adds a capability may raise LINES, and says so.
"""

import ast
import sys
from pathlib import Path

# 8,280 of the house, 520 of architectures and bases, 1,500 of report and explorer, 1,070 of targets, 710 of search
LINES = 12_080
MODULE, CLASS, FUNCTION = 330, 250, 60  # lines of one
LAMBDAS = 12  # in the package
README_LINES, README_WORDS = 130, 1_000

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = {ast.FunctionDef: FUNCTION, ast.AsyncFunctionDef: FUNCTION, ast.ClassDef: CLASS}


def main(package: Path, readme: Path) -> int:
    modules, long_ones, lambdas = {}, [], []
    for file in sorted(package.rglob("*.py")):
        text, name = file.read_text(encoding="utf-8"), file.relative_to(package.parent).as_posix()
        modules[name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Lambda):
                lambdas.append(f"{name}:{node.lineno}")
            elif type(node) in BOUNDS:
                lines = node.end_lineno - node.lineno + 1
                long_ones += [(lines, BOUNDS[type(node)], f"{name}:{node.lineno} {node.name}")]
    total, words = sum(modules.values()), len(readme.read_text(encoding="utf-8").split())
    readme_lines = readme.read_text(encoding="utf-8").count("\n")
    long_ones += [(lines, MODULE, name) for name, lines in modules.items()]

    print(f"package: {total:,} lines of {LINES:,}, {len(modules)} modules, {len(lambdas)} lambdas of {LAMBDAS}")
    for what, bound in (("module", MODULE), ("class", CLASS), ("function", FUNCTION)):
        lines, _, name = max(each for each in long_ones if each[1] == bound)
        print(f"longest {what}: {lines} lines of {bound}, {name}")
    print(f"{readme.name}: {readme_lines} lines of {README_LINES}, {words:,} words of {README_WORDS:,}")

    wrong = [f"{name} has {lines} lines, {bound} at most" for lines, bound, name in long_ones if lines > bound]
    if total > LINES:
        rooms = [(sum(n for name, n in modules.items() if name.startswith(room)), room) for room in _rooms(modules)]
        wrong.append(f"the package has {total - LINES:,} lines too many: {', '.join(f'{r} {n:,}' for n, r in rooms)}")
    if len(lambdas) > LAMBDAS:
        wrong.append(f"{len(lambdas) - LAMBDAS} lambdas too many: {', '.join(lambdas)}")
    if readme_lines > README_LINES or words > README_WORDS:
        wrong.append(f"{readme.name} is too long")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return len(wrong) > 0


def _rooms(modules: dict[str, int]) -> list[str]:
    return sorted({"/".join(name.split("/")[:2]) for name in modules})


if __name__ == "__main__":
    sys.exit(main(ROOT / "llgbm_nb", ROOT / "README.md"))
