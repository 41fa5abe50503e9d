from saeval.results.cells import (
    CELL_TABLES as CELL_TABLES,
    cell_tables as cell_tables,
)
from saeval.results.columns import (
    SCORED as SCORED,
    Column as Column,
    Estimate as Estimate,
    Line as Line,
    cell_columns as cell_columns,
    estimate as estimate,
    json_row as json_row,
    measure_columns as measure_columns,
    score_columns as score_columns,
)
from saeval.results.run_files import (
    Row as Row,
    RunCell as RunCell,
    cell_file as cell_file,
    open_run as open_run,
)
from saeval.results.runs import (
    RUNS as RUNS,
    RunHead as RunHead,
    finished_runs as finished_runs,
    last_run as last_run,
    lines as lines,
    list_runs as list_runs,
    made_elsewhere as made_elsewhere,
    refuse_without_calls as refuse_without_calls,
    run_dirs as run_dirs,
)
from saeval.results.tables import (
    arrow_table as arrow_table,
    csv_text as csv_text,
    read_table as read_table,
    table_bytes as table_bytes,
    tidy as tidy,
    write_csv as write_csv,
    write_parquet as write_parquet,
    write_table as write_table,
)
