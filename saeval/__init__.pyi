from ._util.permissions import check_address, check_receiver, credential
from .assets import Asset, asset_check, asset_path, cache_dir
from .coders import (
    Gate,
    HookPoint,
    LinearCoder,
    ModuleCoder,
    NeuronCoder,
    Sparse,
    SparseCoder,
    down_projection,
)
from .documented import Documented
from .embed import embedder, embedder_check, embedder_sha
from .encoding import encoding_pass
from .errors import (
    BudgetExceeded,
    InputError,
    LLMError,
    ParseError,
    PluginError,
    Refused,
    SaevalError,
    SpecError,
    StoreError,
)
from .files import read_json_lines, write_atomic
from .hookspecs import hookimpl
from .interfaces import LLM, ActivationSource, Coder, Context, Explainer, Need, Plugin, Sampler, Scorer, Step, Tracker
from .llm import (
    FillReply,
    FillRequest,
    FinishReason,
    LanguageModel,
    LogprobReply,
    LogprobRequest,
    Message,
    Reply,
    Request,
    TokenLogprobs,
    Usage,
)
from .metrics import AUROC, BALANCED_ACCURACY, CLASSIFICATION, PEARSON, Metric, auroc, pearson
from .models.live import LiveModel
from .models.subject import Steered, Strength, Subject
from .paths import ModelRef, SpecPath, file_sha256
from .prompts import Prompt
from .reading import Run, read
from .records import Example, Examples, Flaw, LatentId, LatentRecord
from .releases import refuse_malicious
from .report.compare import compare
from .report.join import join
from .results import Explanation, Outcome, RunResult, Score
from .runner import run
from .secrets import without_secrets
from .seeding import content_hash, derive_rng
from .similarity import similarities
from .store import ActivationStore, ActivationWriter, Windows
from .testing import plant
from .tokens import Corpus, TokenDataset, token_bytes

__version__: str

__all__ = [
    "AUROC",
    "BALANCED_ACCURACY",
    "CLASSIFICATION",
    "LLM",
    "PEARSON",
    "ActivationSource",
    "ActivationStore",
    "ActivationWriter",
    "Asset",
    "BudgetExceeded",
    "Coder",
    "Context",
    "Corpus",
    "Documented",
    "Example",
    "Examples",
    "Explainer",
    "Explanation",
    "FillReply",
    "FillRequest",
    "FinishReason",
    "Flaw",
    "Gate",
    "HookPoint",
    "InputError",
    "LLMError",
    "LanguageModel",
    "LatentId",
    "LatentRecord",
    "LinearCoder",
    "LiveModel",
    "LogprobReply",
    "LogprobRequest",
    "Message",
    "Metric",
    "ModelRef",
    "ModuleCoder",
    "Need",
    "NeuronCoder",
    "Outcome",
    "ParseError",
    "Plugin",
    "PluginError",
    "Prompt",
    "Refused",
    "Reply",
    "Request",
    "Run",
    "RunResult",
    "SaevalError",
    "Sampler",
    "Score",
    "Scorer",
    "Sparse",
    "SparseCoder",
    "SpecError",
    "SpecPath",
    "Steered",
    "Step",
    "StoreError",
    "Strength",
    "Subject",
    "TokenDataset",
    "TokenLogprobs",
    "Tracker",
    "Usage",
    "Windows",
    "asset_check",
    "asset_path",
    "auroc",
    "cache_dir",
    "check_address",
    "check_receiver",
    "compare",
    "content_hash",
    "credential",
    "derive_rng",
    "down_projection",
    "embedder",
    "embedder_check",
    "embedder_sha",
    "encoding_pass",
    "file_sha256",
    "hookimpl",
    "join",
    "pearson",
    "plant",
    "read",
    "read_json_lines",
    "refuse_malicious",
    "run",
    "similarities",
    "token_bytes",
    "without_secrets",
    "write_atomic",
]  # fmt: skip
