from saeval.models.autocast import without_autocast as without_autocast
from saeval.models.coders import HookPoint as HookPoint, SparseCoder as SparseCoder
from saeval.models.embeddings import embedder as embedder
from saeval.models.facts import model_facts as model_facts
from saeval.models.fidelity import measure_fidelity as measure_fidelity
from saeval.models.fit import Fit as Fit
from saeval.models.live import on_gpu as on_gpu, release_models as release_models
from saeval.models.loading import resolved as resolved
from saeval.models.logit_lens import directions as directions
from saeval.models.made_for import MadeFor as MadeFor
from saeval.models.screening import screened as screened
from saeval.models.subject import Strength as Strength, Subject as Subject
