from saeval.llm.calls import (
    Budget as Budget,
    Call as Call,
    CallLog as CallLog,
    CallStore as CallStore,
    Earlier as Earlier,
    LoggedCall as LoggedCall,
)
from saeval.llm.first_calls import Asker as Asker, try_models as try_models
from saeval.llm.gateway import (
    Gateway as Gateway,
    RoleSettings as RoleSettings,
    rare_garbage_collection as rare_garbage_collection,
)
from saeval.llm.transcript import Asked as Asked, pack as pack, told as told, unpack as unpack
