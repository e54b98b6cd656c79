"""A mail server that needs no network: it keeps letters in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.mail.backends.base import BaseEmailBackend

from office.models import FullMailbox, Letter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.mail import EmailMessage


class MailboxFullError(OSError):
    """The address takes no more letters."""


class PostOffice(BaseEmailBackend):
    """Take letters, but for addresses whose mailbox is full."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for mail in email_messages:
            for address in mail.to:
                if FullMailbox.objects.filter(address=address).exists():
                    raise MailboxFullError(f"the mailbox of {address} is full")
                Letter.objects.create(
                    address=address, subject=mail.subject, body=mail.body
                )
        return len(email_messages)
