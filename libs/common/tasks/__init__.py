"""The one mechanism for long work: rows that workers lease, carried by Ray, adopted after any kill."""

from libs.common.tasks.handlers import TaskServiceHandlers
from libs.common.tasks.kinds import Driver, Kept, TaskKind
from libs.common.tasks.quota import NoRoom, QuotaLedger
from libs.common.tasks.tables import add_left_rooms, add_pause_to_tasks, add_quota_to_tasks, create_task_tables
from libs.common.tasks.task import Task, TaskError
from libs.common.tasks.tasks import Tasks
from libs.common.tasks.worker import TaskWorker

__all__ = [
    "Driver",
    "Kept",
    "NoRoom",
    "QuotaLedger",
    "Task",
    "TaskError",
    "TaskKind",
    "TaskServiceHandlers",
    "TaskWorker",
    "Tasks",
    "add_left_rooms",
    "add_pause_to_tasks",
    "add_quota_to_tasks",
    "create_task_tables",
]
