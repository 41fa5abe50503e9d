from saeval.records.columns import (
    EVERYWHERE as EVERYWHERE,
    NAME_COLUMN as NAME_COLUMN,
    NOT_ON_NARROW_BOARDS as NOT_ON_NARROW_BOARDS,
    TABLES_ONLY as TABLES_ONLY,
    Better as Better,
    ColumnStyle as ColumnStyle,
    Place as Place,
)
from saeval.records.examples import (
    CorpusFiring as CorpusFiring,
    Example as Example,
    Examples as Examples,
    Flaw as Flaw,
    LatentId as LatentId,
    LatentRecord as LatentRecord,
    shown_at as shown_at,
    with_marks as with_marks,
)
from saeval.records.integrity import later_state as later_state
from saeval.records.judged import JudgedWindows as JudgedWindows
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
    ACCURACY as ACCURACY,
    CLASSIFICATION as CLASSIFICATION,
    Metric as Metric,
    mean_ranks as mean_ranks,
    metrics_mistake as metrics_mistake,
    pearson as pearson,
    spearman as spearman,
)
from saeval.records.prompts import Prompt as Prompt
from saeval.records.replies import finish_reason as finish_reason, readable as readable, whole_answer as whole_answer
from saeval.records.results import (
    CellResult as CellResult,
    Finding as Finding,
    FindingOutcome as FindingOutcome,
    JudgeCheck as JudgeCheck,
    JudgeRole as JudgeRole,
    Ledger as Ledger,
    PartSettings as PartSettings,
    Ranking as Ranking,
    RunResult as RunResult,
    ScorerCheck as ScorerCheck,
    read_result as read_result,
    split_ranking as split_ranking,
)
from saeval.records.rows import (
    ControlContrast as ControlContrast,
    Correlation as Correlation,
    DecileShares as DecileShares,
    FloorSample as FloorSample,
    Measure as Measure,
    NaturalRates as NaturalRates,
    Power as Power,
    ScoreRow as ScoreRow,
    VarianceParts as VarianceParts,
    Verdict as Verdict,
)
from saeval.records.running import LOCK as LOCK, run_state as run_state
from saeval.records.scores import (
    MAIN as MAIN,
    Explanation as Explanation,
    Outcome as Outcome,
    Score as Score,
    Status as Status,
    WrittenText as WrittenText,
)
