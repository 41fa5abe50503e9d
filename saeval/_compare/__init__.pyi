from saeval._compare.controls import (
    ControlCell as ControlCell,
    control_contrasts as control_contrasts,
    strata_texts as strata_texts,
)
from saeval._compare.join import Entry as Entry, Joined as Joined
from saeval._compare.judge_errors import correct_for_judge as correct_for_judge, verdict as verdict
from saeval._compare.latent_matching import Basis as Basis, Floats as Floats, compare_vectors as compare_vectors
from saeval._compare.leaderboard import (
    AgainstBaseline as AgainstBaseline,
    Leaderboard as Leaderboard,
    Standing as Standing,
)
from saeval._compare.lift_rows import with_lifts as with_lifts
from saeval._compare.matched_l0 import Matched as Matched, at_l0 as at_l0
from saeval._compare.natural import KnownJudge as KnownJudge, Tally as Tally, natural_rates as natural_rates
from saeval._compare.noise import (
    Halves as Halves,
    components as components,
    disattenuated as disattenuated,
    prediction_interval as prediction_interval,
    reliability as reliability,
    score_noise as score_noise,
    sides_right as sides_right,
    worth_of_more as worth_of_more,
)
from saeval._compare.pairwise import at_floor as at_floor
from saeval._compare.pooled import pooled_mean as pooled_mean, pooled_runs as pooled_runs, repeated as repeated
from saeval._compare.power import paired_power as paired_power, power_interval as power_interval
from saeval._compare.score_rows import (
    Floors as Floors,
    ScorerRun as ScorerRun,
    judgement_columns as judgement_columns,
    latent_score_rows as latent_score_rows,
    score_row as score_row,
)
from saeval._compare.settings import TextOf as TextOf, differing_text as differing_text
from saeval._compare.stats import (
    correlated as correlated,
    mean_interval as mean_interval,
    standard_error as standard_error,
)
