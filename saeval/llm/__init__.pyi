from saeval.llm.budget import Budget as Budget
from saeval.llm.cache import AnswerCache as AnswerCache, answer_json as answer_json
from saeval.llm.closing import close as close
from saeval.llm.first_calls import try_models as try_models
from saeval.llm.gateway import Gateway as Gateway, rare_garbage_collection as rare_garbage_collection
from saeval.llm.ledger import (
    Call as Call,
    CallLedger as CallLedger,
    Earlier as Earlier,
    LoggedCall as LoggedCall,
    Served as Served,
    ledger_line as ledger_line,
    ledgers_in as ledgers_in,
)
from saeval.llm.replay_export import export_replies as export_replies
from saeval.llm.role import Asker as Asker, Concurrency as Concurrency, RoleSettings as RoleSettings
from saeval.llm.splitting import join_replies as join_replies, split_request as split_request
from saeval.llm.transcript import (
    PromptReply as PromptReply,
    pack as pack,
    prompt_replies as prompt_replies,
    unpack as unpack,
)
