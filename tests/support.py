"""What the tests of all floors share."""

from django_cqrs.buses import Registry


def registry_of(*targets):
    """Return a registry that has these handlers and classes."""
    registry = Registry()
    for target in targets:
        registry.add(target)
    return registry


def rules_of(registry):
    """Return the rules that the declarations in a registry break."""
    return [problem.rule for problem in registry.routes.problems]


def faults_of(caught):
    """Return the path and the message of each field error that was caught."""
    return [(error.path, error.message) for error in caught.value.errors]
