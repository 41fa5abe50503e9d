from saeval._compare.join import Entry as Entry, Joined as Joined
from saeval._compare.judge_errors import correct_for_judge as correct_for_judge, verdict as verdict
from saeval._compare.latent_matching import Basis as Basis, Floats as Floats, compare_vectors as compare_vectors
from saeval._compare.leaderboard import AgainstBaseline as AgainstBaseline, Leaderboard as Leaderboard
from saeval._compare.lift_rows import with_lifts as with_lifts
from saeval._compare.lifts import Paired as Paired, lifts as lifts
from saeval._compare.score_rows import Floors as Floors, Scoring as Scoring, score_row as score_row
from saeval._compare.stats import (
    apart_p as apart_p,
    combined_interval as combined_interval,
    correlated as correlated,
    depends_p as depends_p,
    detectable_difference as detectable_difference,
    fisher as fisher,
    mean_interval as mean_interval,
    paired_p as paired_p,
    standard_error as standard_error,
)
