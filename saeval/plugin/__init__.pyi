from saeval._util.assets import (
    Asset as Asset,
    asset_check as asset_check,
    asset_path as asset_path,
    cache_dir as cache_dir,
)
from saeval._util.errors import (
    BudgetExceeded as BudgetExceeded,
    CutOff as CutOff,
    InputError as InputError,
    LLMError as LLMError,
    ParseError as ParseError,
    PluginError as PluginError,
    Refused as Refused,
    SaevalError as SaevalError,
    SpecError as SpecError,
    StoreError as StoreError,
)
from saeval._util.field_docs import Documented as Documented
from saeval._util.files import read_json_lines as read_json_lines, write_atomic as write_atomic
from saeval._util.paths import ModelRef as ModelRef, SpecPath as SpecPath, file_sha256 as file_sha256
from saeval._util.permissions import (
    check_address as check_address,
    check_receiver as check_receiver,
    credential as credential,
)
from saeval._util.releases import refuse_malicious as refuse_malicious
from saeval._util.secrets import without_secrets as without_secrets
from saeval._util.seeding import content_hash as content_hash, derive_rng as derive_rng
from saeval._util.watchdog import check_memory as check_memory
from saeval.activations.decoding import (
    special_ids as special_ids,
    token_bytes as token_bytes,
    token_strings as token_strings,
)
from saeval.activations.store import (
    ActivationStore as ActivationStore,
    ActivationWriter as ActivationWriter,
    Windows as Windows,
)
from saeval.activations.tokens import Corpus as Corpus, TokenDataset as TokenDataset
from saeval.models.coders import (
    GatedEncoder as GatedEncoder,
    HookPoint as HookPoint,
    LinearCoder as LinearCoder,
    ModuleCoder as ModuleCoder,
    NeuronCoder as NeuronCoder,
    Sparse as Sparse,
    SparseCoder as SparseCoder,
    down_projection as down_projection,
)
from saeval.models.embeddings import (
    embedder as embedder,
    embedder_check as embedder_check,
    embedder_sha as embedder_sha,
)
from saeval.models.fit import Fit as Fit
from saeval.models.live import LiveModel as LiveModel
from saeval.models.made_for import MadeFor as MadeFor
from saeval.models.packed_matmul import encoding_pass as encoding_pass
from saeval.models.subject import Steered as Steered, Strength as Strength, Subject as Subject
from saeval.plugin.answers import (
    answer_probabilities as answer_probabilities,
    ask_twice as ask_twice,
    parse_list as parse_list,
    shortened as shortened,
)
from saeval.plugin.asking import (
    MARKER as MARKER,
    Asking as Asking,
    ask as ask,
    parse_explanation as parse_explanation,
    show as show,
    show_plain as show_plain,
)
from saeval.plugin.base import (
    LLM as LLM,
    ActivationSource as ActivationSource,
    Coder as Coder,
    Context as Context,
    Explainer as Explainer,
    Need as Need,
    Plugin as Plugin,
    RunProgress as RunProgress,
    Sampler as Sampler,
    Scorer as Scorer,
    Step as Step,
    Tracker as Tracker,
    load_coder as load_coder,
)
from saeval.plugin.hookspecs import hookimpl as hookimpl
from saeval.plugin.judge import REFERENCES as REFERENCES, Judge as Judge, Question as Question
from saeval.plugin.outcomes import failed as failed, unanswered as unanswered, valued as valued
from saeval.plugin.prompt_text import (
    escaped as escaped,
    few_shot as few_shot,
    marked_line as marked_line,
    one_line as one_line,
)
from saeval.records.examples import (
    CorpusFiring as CorpusFiring,
    Example as Example,
    Examples as Examples,
    Flaw as Flaw,
    LatentId as LatentId,
    LatentRecord as LatentRecord,
)
from saeval.records.messages import (
    AnswerSchema as AnswerSchema,
    FillReply as FillReply,
    FillRequest as FillRequest,
    FinishReason as FinishReason,
    LanguageModel as LanguageModel,
    LogprobReply as LogprobReply,
    LogprobRequest as LogprobRequest,
    Message as Message,
    Reply as Reply,
    Request as Request,
    TokenLogprobs as TokenLogprobs,
    Usage as Usage,
)
from saeval.records.metrics import (
    AUROC as AUROC,
    BALANCED_ACCURACY as BALANCED_ACCURACY,
    CLASSIFICATION as CLASSIFICATION,
    PEARSON as PEARSON,
    Metric as Metric,
    auroc as auroc,
    pearson as pearson,
)
from saeval.records.prompts import Prompt as Prompt
from saeval.records.replies import finish_reason as finish_reason, whole_answer as whole_answer
from saeval.records.results import RunResult as RunResult
from saeval.records.rows import Measure as Measure
from saeval.records.scores import (
    Explanation as Explanation,
    Outcome as Outcome,
    Score as Score,
    WrittenText as WrittenText,
)
from saeval.testing import plant as plant
