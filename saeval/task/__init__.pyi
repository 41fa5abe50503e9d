from saeval.task.files import find_group as find_group, shipped_tasks as shipped_tasks
from saeval.task.from_flags import TaskFlags as TaskFlags, spec_from_flags as spec_from_flags
from saeval.task.guarded import said_by as said_by, text_options_of as text_options_of
from saeval.task.loader import (
    AGAIN as AGAIN,
    HALVES as HALVES,
    REPEATED as REPEATED,
    load_task as load_task,
)
from saeval.task.parts import Cell as Cell, Part as Part, RolePart as RolePart, StepPart as StepPart, Task as Task
from saeval.task.schema import task_schema as task_schema
from saeval.task.spec import (
    OF_ALL_LATENTS as OF_ALL_LATENTS,
    SHUFFLED as SHUFFLED,
    CellFilter as CellFilter,
    FindingSpec as FindingSpec,
    Spec as Spec,
    parse_assignment as parse_assignment,
    plain as plain,
    score_reference as score_reference,
)
