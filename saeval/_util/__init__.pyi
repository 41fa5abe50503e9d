from saeval._util.assets import (
    PREFIX as PREFIX,
    asset_check as asset_check,
    asset_path as asset_path,
    cache_dir as cache_dir,
    find_asset as find_asset,
)
from saeval._util.call_packing import (
    LEFT_OUT as LEFT_OUT,
    packed_calls as packed_calls,
    unpacked_calls as unpacked_calls,
)
from saeval._util.checksums import (
    CHECKSUMS as CHECKSUMS,
    cell_tables_in as cell_tables_in,
    changed_files as changed_files,
    remove_checksums as remove_checksums,
    write_checksums as write_checksums,
)
from saeval._util.clean_types import CleanJson as CleanJson, CleanText as CleanText
from saeval._util.crash import (
    SINGLE_FILE as SINGLE_FILE,
    internal_error as internal_error,
    plugin_place as plugin_place,
)
from saeval._util.deflate import deflated as deflated, gzipped as gzipped, inflated as inflated
from saeval._util.encodable import (
    clean as clean,
    clean_text as clean_text,
)
from saeval._util.errors import (
    BudgetExceeded as BudgetExceeded,
    CutOff as CutOff,
    InputError as InputError,
    InternalError as InternalError,
    LLMError as LLMError,
    ParseError as ParseError,
    PluginError as PluginError,
    Refused as Refused,
    SaevalError as SaevalError,
    SpecError as SpecError,
    StoreError as StoreError,
    did_you_mean as did_you_mean,
    first_line as first_line,
)
from saeval._util.field_docs import Documented as Documented, descriptions as descriptions
from saeval._util.file_locks import is_locked as is_locked
from saeval._util.files import (
    LineFile as LineFile,
    parse_json as parse_json,
    read_json as read_json,
    read_json_lines as read_json_lines,
    replacing as replacing,
    text_checksum as text_checksum,
    write_atomic as write_atomic,
)
from saeval._util.foreign_values import plain_values as plain_values
from saeval._util.lazy import attach as attach
from saeval._util.limits import os_reason as os_reason, shortage as shortage
from saeval._util.memory import free_memory as free_memory
from saeval._util.offline import without_hub as without_hub
from saeval._util.owned_dirs import (
    claim as claim,
    claim_inside as claim_inside,
    is_empty as is_empty,
    is_ours as is_ours,
    mark as mark,
    refuse_links as refuse_links,
)
from saeval._util.paths import (
    Located as Located,
    SpecPath as SpecPath,
    file_sha256 as file_sha256,
    with_home as with_home,
)
from saeval._util.permissions import allow as allow, granted as granted
from saeval._util.plain_files import refuse_pipe as refuse_pipe, refuse_pipes as refuse_pipes
from saeval._util.progress import (
    Display as Display,
    FailsafeDisplay as FailsafeDisplay,
    Silent as Silent,
    Spending as Spending,
    Stage as Stage,
    Style as Style,
    default_display as default_display,
    display as display,
)
from saeval._util.releases import refuse_malicious as refuse_malicious
from saeval._util.safe_paths import (
    file_name as file_name,
    latent_number as latent_number,
    new_folder as new_folder,
    report_bad_values as report_bad_values,
    unique as unique,
)
from saeval._util.secrets import (
    MARK as MARK,
    SHORTEST as SHORTEST,
    holds_secret as holds_secret,
    may_hold_values as may_hold_values,
    names_secret as names_secret,
    placeholder as placeholder,
    random_looking as random_looking,
    refresh_environment as refresh_environment,
    without_keys as without_keys,
    without_secrets as without_secrets,
    without_values as without_values,
)
from saeval._util.seeding import content_hash as content_hash, derive_rng as derive_rng
from saeval._util.shared_text import without_shared as without_shared
from saeval._util.text import (
    MISSING as MISSING,
    WIDTH as WIDTH,
    aligned as aligned,
    aligned_rows as aligned_rows,
    counted as counted,
    escape_markdown as escape_markdown,
    escape_script as escape_script,
    escape_spreadsheet as escape_spreadsheet,
    fold as fold,
    interval as interval,
    latex_table as latex_table,
    markdown_table as markdown_table,
    measured as measured,
    number as number,
    padded as padded,
    rounded as rounded,
    safe_text as safe_text,
    screen_width as screen_width,
    short as short,
    shown as shown,
    sort_key as sort_key,
    visible as visible,
    whole_width as whole_width,
)
from saeval._util.user_errors import (
    complaint as complaint,
    field_names as field_names,
    model_in as model_in,
    refuse_text as refuse_text,
)
from saeval._util.watchdog import (
    NotAsync as NotAsync,
    Patience as Patience,
    PluginExit as PluginExit,
    check_memory as check_memory,
    contained as contained,
    interrupt_if_blocked as interrupt_if_blocked,
    mark_seen as mark_seen,
    memory_left as memory_left,
    watch_standstill as watch_standstill,
)
