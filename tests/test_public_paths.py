"""The names that users import, and that settings, queues and logs hold, stay."""

import importlib
import logging

import pytest
from django.apps import apps

from django_cqrs.problems import Rule

# Every name that the documentation shows, by the module that it is imported from.
PUBLIC = {
    "django_cqrs": """
        Command CommandBus DEADLOCKS Depends EventBus Fetch Header Headers
        Identifier InstantRetry Message MessageGaveUp Query QueryBus Receipt
        Registry Retry Send Sensitive Service Version command_bus command_handler
        event_bus event_handler
        message query_bus query_handler service
    """,
    "django_cqrs.modelling": """
        Fetch Identifier Json Repository Saga Version aggregate business_interface
        business_method implement saga sql_query sql_write
    """,
    "django_cqrs.interception": """
        Marker Pointcut Proceed RETRY STOP TRANSACTION after around before
        pointcut pre_send
    """,
    "django_cqrs.exceptions": """
        AggregateAlreadyExists AggregateNotFound BrokenTransaction CQRSError
        ConcurrencyError DocumentAlreadyExists DocumentNotFound DuplicateHandler
        FieldError InvalidChannel InvalidHandler InvalidHeader InvalidIdentifier
        InvalidKey InvalidOption MessageConversionError MessageStopped
        MissingHeader MissingTenant NoHandlerFound ParameterError
        PreconditionError SynchronousDispatch TenantSwitch UnexpectedResult
        UnknownEndpoint UnknownMessage UnknownSchedule UnknownTenant UnsentCommand
    """,
    "django_cqrs.tenancy": """
        CurrentTenant TenantRouter all_tenants current_tenant tenant
        tenant_activated tenant_deactivated
    """,
    "django_cqrs.retries": """
        DEADLOCKS Decision InstantRetry Retry Transient
    """,
    "django_cqrs.signals": """
        batch_finished batch_started message_failed message_handled
        tenant_activated tenant_deactivated worker_started worker_stopped
    """,
    "django_cqrs.models": """
        NameField RecordsEvents SagaModel
    """,
    "django_cqrs.conversion": """
        converter to_json to_jsonable upcaster
    """,
    "django_cqrs.channels": """
        Channel DEFAULT_CHANNEL_ALIAS Delivery Envelope ImmediateChannel
        InMemoryChannel OnCommitChannel as_timedelta channels
    """,
    "django_cqrs.views": """
        AsyncCommandView AsyncQueryView CommandView OutcomeView QueryView
        VersionedAnswer aask_for adispatch_for ask_for dispatch_for
    """,
    "django_cqrs.forms": """
        MessageForm form_of
    """,
    "django_cqrs.openapi": """
        openapi_document
    """,
    "django_cqrs.middleware": """
        MessageHeadersMiddleware
    """,
    "django_cqrs.buses": """
        CommandBus EventBus QueryBus Registry command_bus event_bus query_bus
        registry
    """,
    "django_cqrs.modelling.sagas": """
        Completable
    """,
    "django_cqrs.documents": """
        DocumentStore document
    """,
    "django_cqrs.events": """
        ANY Appended EXISTS EventMarker EventQuery EventStore ExpectedVersion NEW
        Recorded SagaCompleted Stored Tag applies event_store event_stream replay where
    """,
    "django_cqrs.documents.models": """
        Document
    """,
    "django_cqrs.outbox.tasks": """
        OutboxTaskBackend
    """,
    "django_cqrs.outbox.channel": """
        OutboxChannel
    """,
    "django_cqrs.outbox.models": """
        DeadLetter InboxEntry JournalEntry OutboxMessage Outcome PausedChannel
        Reason State Throughput WorkerRecord
    """,
    "django_cqrs.outbox.admin": """
        DeadLetterAdmin JournalEntryAdmin OutboxMessageAdmin TimelineMixin
        WorkerRecordAdmin
    """,
    "django_cqrs.outbox.attendance": """
        ALIVE LivingWorker living_workers
    """,
    "django_cqrs.outbox.deployment": """
        StoredKind stored_kinds
    """,
    "django_cqrs.outbox.pausing": """
        pause paused_channels resume
    """,
    "django_cqrs.outbox.health": """
        Problem find_problems
    """,
    "django_cqrs.outbox.outcomes": """
        MessageOutcome MessageStatus aoutcome_of outcome_of
    """,
    "django_cqrs.outbox.statistics": """
        ChannelStatistics LOOKED WINDOWS statistics_of
    """,
    "django_cqrs.outbox.pruning": """
        Pruned prune
    """,
    "django_cqrs.outbox.journal": """
        purge
    """,
    "django_cqrs.schedules": """
        cron every scheduled
    """,
    "django_cqrs.schedules.models": """
        Schedule
    """,
    "django_cqrs.schedules.operations": """
        ScheduleState ScheduleStatus next_times pause resume run_now statuses
    """,
    "django_cqrs.engines.base": """
        EngineChannel handle
    """,
    "django_cqrs.engines.celery": """
        CeleryChannel
    """,
    "django_cqrs.engines.tasks": """
        TasksChannel
    """,
    "django_cqrs.contrib.health_check": """
        Outbox
    """,
    "django_cqrs.contrib.ninja": """
        install_exception_handlers
    """,
    "django_cqrs.contrib.opentelemetry": """
        instrument observe_outbox uninstrument
    """,
    "django_cqrs.contrib.rest_framework": """
        exception_handler
    """,
    "django_cqrs.testing": """
        ANYTHING Flow InMemoryChannel Scenario SimulatedCrash Tree eager_channels
        like override run_channel scenario
    """,
    "django_cqrs.testing.flow": """
        Flow
    """,
    "django_cqrs.testing.channels": """
        ChannelConformance HandlerFailed
    """,
    "django_cqrs.testing.machines": """
        AggregateMachine SagaMachine assert_once check_payloads initialize
        invariant messages_of precondition rule
    """,
    "django_cqrs.testing.pytest_plugin": """
        flow scenario
    """,
}

LOGGERS = {
    "django_cqrs.channels",
    "django_cqrs.events",
    "django_cqrs.health",
    "django_cqrs.http",
    "django_cqrs.journal",
    "django_cqrs.pipeline",
    "django_cqrs.schedules",
    "django_cqrs.projections",
    "django_cqrs.worker",
}


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in PUBLIC.items() for name in names.split()],
)
def test_every_documented_name_is_imported_from_its_path(module, name):
    """What the documentation imports from a module is there."""
    assert hasattr(importlib.import_module(module), name)


def test_the_front_door_offers_exactly_the_documented_names():
    """A name joins or leaves the front door on purpose only."""
    assert sorted(importlib.import_module("django_cqrs").__all__) == sorted(
        PUBLIC["django_cqrs"].split()
    )


def test_the_apps_keep_their_labels_and_tables():
    """Labels and tables stand in migrations and in the databases of users."""
    tables = {
        model._meta.label: model._meta.db_table
        for label in ("django_cqrs_outbox", "django_cqrs_documents")
        for model in apps.get_app_config(label).get_models()
    }

    kept = {
        "django_cqrs_outbox.OutboxMessage": "django_cqrs_outbox_outboxmessage",
        "django_cqrs_outbox.DeadLetter": "django_cqrs_outbox_deadletter",
        "django_cqrs_outbox.InboxEntry": "django_cqrs_outbox_inboxentry",
        "django_cqrs_outbox.Throughput": "django_cqrs_outbox_throughput",
        "django_cqrs_outbox.JournalEntry": "django_cqrs_outbox_journalentry",
        "django_cqrs_documents.Document": "django_cqrs_documents_document",
    }
    assert {label: tables.get(label) for label in kept} == kept


def test_the_loggers_keep_their_names():
    """Users set levels and handlers by the names of loggers."""
    importlib.import_module("django_cqrs.contrib.opentelemetry")
    importlib.import_module("django_cqrs.engines.tasks")
    importlib.import_module("django_cqrs.views")
    known = {
        name
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("django_cqrs.") and isinstance(logger, logging.Logger)
    }

    assert known == LOGGERS


def test_engines_find_their_task_by_its_name():
    """Queues hold the names of tasks across deployments."""
    celery = importlib.import_module("django_cqrs.engines.celery")
    tasks = importlib.import_module("django_cqrs.engines.tasks")

    assert celery.TASK_NAME == "django_cqrs.handle"
    assert tasks.TASK == "handle_messages"
    assert tasks.__name__ == "django_cqrs.engines.tasks"


def test_check_ids_are_not_given_twice():
    """Users silence checks by their ids."""
    ids = [rule.id for rule in Rule]

    assert len(set(ids)) == len(ids)
