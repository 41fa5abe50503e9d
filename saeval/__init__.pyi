from . import plugin as plugin, testing as testing
from ._compare.join import join as join
from ._compare.latent_matching import similarities as similarities
from ._compare.pairwise import compare as compare
from ._run.runner import run as run
from ._util.errors import (
    BudgetExceeded as BudgetExceeded,
    InputError as InputError,
    InternalError as InternalError,
    LLMError as LLMError,
    PluginError as PluginError,
    SaevalError as SaevalError,
    SpecError as SpecError,
    StoreError as StoreError,
)
from .report.reader import Run as Run, read as read
from .task.spec.models import PartSpec as PartSpec, RoleSpec as RoleSpec, Spec as Spec

__version__: str
