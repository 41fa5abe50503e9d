from saeval.activations.firing_windows import histogram as histogram, portrait as portrait
from saeval.activations.latent_stats import (
    mean_square as mean_square,
    position_dependence as position_dependence,
    token_share as token_share,
)
from saeval.activations.store import (
    ActivationStore as ActivationStore,
    ActivationWriter as ActivationWriter,
    store_folder as store_folder,
)
from saeval.activations.tokens import (
    CONTEXT as CONTEXT,
    Corpus as Corpus,
    TokenDataset as TokenDataset,
    no_such_lead as no_such_lead,
)
