"""A mail server that kills whoever sends by it."""

import os
import signal

from django.core.mail.backends.base import BaseEmailBackend


class PostOffice(BaseEmailBackend):
    def send_messages(self, email_messages):
        os.kill(os.getpid(), signal.SIGKILL)
