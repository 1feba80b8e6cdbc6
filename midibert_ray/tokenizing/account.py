"""An account of a corpus's labels, in lines: what was understood, what is missing, and what can be made of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from midibert_ray.corpora.table import PREFIX, counts
from midibert_ray.data.format import LABELS, find_manifest
from midibert_ray.music.tasks import Task
from midibert_ray.tokenizing.labelling import LabelPlan, crossing

_SHOWN = 12  # classes
_NAMED = 3  # files, groups


def describe(plan: LabelPlan, tasks: Sequence[Task]) -> Iterator[str]:
    """Lines on the labels of a corpus, as one of its folds has them, and on some tasks that read them."""
    labels = plan.labels
    yield f"{labels.source or 'no table'}, {len(labels.pieces):,} pieces" + _first("file is in no row", labels.unknown)
    if labels.missing:
        yield f"{len(labels.missing):,} rows name no file below the folder: {_some(labels.missing)}"
    for task in tasks:
        yield from _task_lines(plan, task)
    if labels.groups and (sizes := Counter(filter(None, labels.groups))):
        few, many = min(sizes.values()), max(sizes.values())
        yield f"{len(sizes):,} groups of {few:,} to {many:,} pieces; {labels.groups.count(None):,} pieces have none"
    yield from _duplicate_lines(plan, tasks)
    yield from _division_lines(plan)


def _task_lines(plan: LabelPlan, task: Task) -> Iterator[str]:
    """Lines on one task: its labels, what has none, and what its smallest class allows."""
    if task.level == "note":
        yield f"{task.name}: classes of notes: {', '.join(task.classes)}"
        return
    labels, cells = plan.labels, plan.labels.columns[task.column.removeprefix(PREFIX)]
    found = counts(labels, task)
    if task.kind == "number":
        values = sorted(float(cell) for cell in cells if cell is not None)
        middle = values[len(values) // 2]
        yield f"{task.name}: {len(values):,} numbers, {values[0]:g} to {values[-1]:g}, the middle one {middle:g}"
    else:
        shown = ", ".join(f"{name} {found[name]:,}" for name in task.classes[:_SHOWN])
        more = f" and {len(task.classes) - _SHOWN:,} more" if len(task.classes) > _SHOWN else ""
        yield f"{task.name}: {len(task.classes)} {task.kind}: {shown}{more}"
    if empty := [number for number, cell in enumerate(cells) if cell is None]:
        yield f"{task.name}: {len(empty):,} empty labels take no part, the first in {labels.at(empty[0])}"
    if task.kind != "number":
        units = plan.units(task)
        name = min(task.classes, key=lambda name: len(units[name]))
        allowed = f"at most {len(units[name])} folds can test it" if len(units[name]) >= 3 else "too few for folds"
        yield (
            f"{task.name}: the smallest class is {name}, {found[name]:,} pieces in {len(units[name]):,} groups: "
            f"{allowed}"
        )


def _duplicate_lines(plan: LabelPlan, tasks: Sequence[Task]) -> Iterator[str]:
    """Lines on files of the same bytes, of which one counts, and on labels in which they differ."""
    made, names = find_manifest(plan.tokens.uri), {piece.files[0]: piece.piece for piece in plan.tokens.pieces}
    told = {entry["file"]: entry["of"] for entry in made["duplicates"]} if made else None
    same = plan.tokens.duplicates if told is None else told  # which reads the files
    if same:
        pairs = [f"{file} as {first}" for file, first in sorted(same.items())]
        yield f"{len(same):,} files hold the same bytes as others and do not count: {_some(pairs)}"
    row = {piece: number for number, piece in enumerate(plan.labels.pieces)}
    for task in (task for task in tasks if task.level == "sequence"):
        cells = plan.labels.columns[task.column.removeprefix(PREFIX)]
        for file, first in sorted(same.items()):
            pair = [cells[row[names[each]]] if names[each] in row else None for each in (file, first)]
            if None not in pair and pair[0] != pair[1]:
                yield f"{task.name}: {file} is {pair[0]!r}, and {first}, the same bytes, {pair[1]!r}, which counts"


def _division_lines(plan: LabelPlan) -> Iterator[str]:
    """Lines on the splits or folds: by what, how many pieces each, and what stands on both sides."""
    made = find_manifest(plan.uri) if plan.is_current() else None
    rows = plan.table().to_pylist()
    if made:
        about: Mapping[str, object] = made[LABELS]
        divided, both, sizes = about["divided_by"], about["crossing"], about["pieces"]
    else:
        divided, both = plan.divided_by(False), crossing(rows)
        sizes = Counter(row["split"] for row in rows)
    fold = f"fold {plan.fold} of {plan.folds}: " if plan.folds else ""
    yield f"divided by {divided}, {fold}{_sizes(sizes)}" + (
        "" if made else "; near-duplicates are found once it is tokenized"
    )
    assert isinstance(both, dict)
    for kind, column in (("groups", "group"), ("near-duplicates", "twin")):
        if both[column]:
            yield f"{len(both[column]):,} {kind} stand in train and beside it, which flatters: {_some(both[column])}"


def _sizes(sizes: object) -> str:
    assert isinstance(sizes, dict)
    order = ("train", "valid", "test", "pretrain")
    names = {"pretrain": "without a split"}
    return ", ".join(f"{names.get(name, name)} {sizes[name]:,}" for name in order if sizes.get(name))


def _first(what: str, names: Sequence[str]) -> str:
    return (
        f"; {len(names):,} {what.replace('file is', 'files are') if len(names) > 1 else what}: {_some(names)}"
        * bool(names)
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
