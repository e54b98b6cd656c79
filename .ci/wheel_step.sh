#!/usr/bin/env bash
# Builds the wheel and uses it as a newcomer would: an empty environment, a new
# project, one app, one command.    .ci/wheel_step.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  printf '%s\n' "$1" >&2
  exit 1
}

echo 'Building the wheel.'
"$python" -m venv "$work/venv"
bin=$work/venv/bin
"$bin/python" -m pip install -qq --upgrade pip
"$bin/python" -m pip wheel -qq --no-deps --wheel-dir "$work/dist" .
wheels=("$work"/dist/*.whl)

"$bin/python" - "${wheels[0]}" <<'PYTHON'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
strays = [
    name
    for name in names
    if not name.startswith("django_cqrs/") and ".dist-info/" not in name
]
missing = [
    wanted
    for wanted in ("django_cqrs/py.typed", "django_cqrs/apps.py", "/licenses/LICENSE")
    if not any(name.endswith(wanted) for name in names)
]
if strays or missing:
    sys.exit(f"The wheel must not hold {strays}; it lacks {missing}.")
print(f"{len(names)} files, all of them under django_cqrs/.")
PYTHON

echo 'Installing it in an empty environment.'
"$bin/python" -m pip install -qq "${wheels[0]}"
"$bin/python" -m pip check

# Nothing below may find the sources.
cd "$work"
"$bin/django-admin" startproject helpdesk
cd helpdesk
"$bin/python" manage.py startapp tickets

cat >>helpdesk/settings.py <<'PYTHON'

INSTALLED_APPS += ["django_cqrs", "tickets"]
PYTHON

cat >tickets/messages.py <<'PYTHON'
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenTicket:
    title: str
    priority: int = 3


@dataclass(frozen=True, slots=True)
class TicketOpened:
    title: str
PYTHON

# Groups stand for tickets: a table that a new project already has.
cat >tickets/handlers.py <<'PYTHON'
from django.contrib.auth.models import Group

from django_cqrs import EventBus, command_handler, event_handler, query_handler

from tickets.messages import OpenTicket, TicketOpened


@command_handler
def open_ticket(command: OpenTicket, events: EventBus) -> str:
    group = Group.objects.create(name=command.title)
    events.publish(TicketOpened(group.name))
    return f"opened {group.name} with priority {command.priority}"


@event_handler
def greet(event: TicketOpened) -> None:
    print(f"heard of {event.title}")


@query_handler("ticket.count")
def count_tickets() -> int:
    return Group.objects.count()
PYTHON

export PYTHONWARNINGS=error
manage() { "$bin/python" manage.py "$@"; }

expect() {
  local wanted=$1 found
  shift
  found=$("$@" 2>&1) || fail "$* failed: $found"
  case $found in
    *"$wanted"*) printf '%s\n' "$found" ;;
    *) fail "$* should print \"$wanted\" and printed: $found" ;;
  esac
}

manage migrate --verbosity 0
expect 'System check identified no issues (0 silenced).' manage check

expect $'heard of printer\nopened printer with priority 3\n1 ticket' \
  manage shell --no-imports -c '
from django_cqrs import command_bus, query_bus
from tickets.messages import OpenTicket

print(command_bus.dispatch(OpenTicket("printer")))
print(query_bus.ask(route="ticket.count"), "ticket")
'

expect 'tickets.handlers' manage cqrs_routes
