from saeval._compare.join import Entry as Entry, Joined as Joined
from saeval._compare.latent_matching import Basis as Basis, Floats as Floats, compare_vectors as compare_vectors
from saeval._compare.leaderboard import Leaderboard as Leaderboard
from saeval._compare.score_rows import Floors as Floors, Scoring as Scoring, score_row as score_row
from saeval._compare.stats import combined_interval as combined_interval, correlated as correlated
