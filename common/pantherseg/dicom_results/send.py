"""Sending DICOM results to an archive or a viewer by C-STORE, with pynetdicom."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pantherseg.dicom_results.formats import ObjectFormat, format_of, quiet_dicom
from pantherseg.errors import OutputError
from pantherseg.logs import silenced, stage

if TYPE_CHECKING:
    from pynetdicom.association import Association

# What this program calls itself. A receiver may accept only titles that it knows.
OUR_TITLE = "PANTHERSEG"
CONNECT_S, ANSWER_S = 10, 60
# AET@host:port; a title has at most 16 characters (PS3.5, AE), and an IPv6 address stands in brackets.
ADDRESS = re.compile(r"(?P<title>[^@\\]{1,16})@(?P<host>\[[0-9a-fA-F:.]+\]|[^@:\[\]]+):(?P<port>\d{1,5})")
# The status of a stored object is success, or a warning that says how it was stored (PS3.4, B.2.3).
STORED = (0x0000, 0xB000, 0xB006, 0xB007)
SAY_ECHO = "check the address with `python -m pynetdicom echoscu HOST PORT -aec TITLE`"


@dataclass(frozen=True)
class Receiver:
    """Where results are sent. title: its application entity title."""

    title: str
    host: str
    port: int

    @classmethod
    def of(cls, address: str) -> Receiver:
        """Return the receiver of an address AET@host:port. Raises ValueError."""
        found = ADDRESS.fullmatch(address.strip())
        if found is None or not found["title"].strip() or not 0 < int(found["port"]) < 2**16:
            raise ValueError(f"expected AET@host:port, such as ORTHANC@localhost:4242, found {address!r}")
        if not (found["title"].isascii() and found["title"].isprintable()):
            raise ValueError(f"expected a title of plain letters (ASCII), found {found['title']!r}")
        return cls(found["title"].strip(), found["host"].strip("[]"), int(found["port"]))

    def __str__(self) -> str:
        """Return the address."""
        return f"{self.title}@{self.host}:{self.port}"

    def check(self, formats: Sequence[ObjectFormat]) -> None:
        """Connect and ask whether objects of these formats are accepted. Raises OutputError."""
        with self._associated([one.sop_class for one in formats]):
            pass

    def send(self, paths: Sequence[Path]) -> None:
        """Send objects, and wait for the answer to each. Raises OutputError for the first that is not stored."""
        classes = dict.fromkeys(one.sop_class for path in paths if (one := format_of(path.name)) is not None)
        with stage("send") as remarks, self._associated(list(classes)) as association:
            for path in paths:
                status = association.send_c_store(path).get("Status")
                if status is None:
                    problem = f"gave no answer to {path.name} within {ANSWER_S} s, or ended the connection"
                    raise OutputError(str(self), problem, hint="run the same command again, which sends what is done")
                if status not in STORED:
                    problem = f"did not store {path.name}: status 0x{status:04X}"
                    raise OutputError(str(self), problem, hint="the log of the receiver says why")
            remarks.append(f"{len(paths)} objects to {self}")

    @contextmanager
    def _associated(self, classes: Sequence[str]) -> Iterator[Association]:
        """Yield a connection on which objects of some SOP classes are accepted. Raises OutputError."""
        # pynetdicom logs several lines for what is an error in one line here.
        with quiet_dicom(Path("--send")), silenced("pynetdicom"):
            from pydicom.uid import UID, ExplicitVRLittleEndian
            from pynetdicom import AE

            self._check_address()
            entity = AE(OUR_TITLE)
            entity.connection_timeout = CONNECT_S
            entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ANSWER_S
            for one in classes:
                entity.add_requested_context(one, ExplicitVRLittleEndian)  # the syntax of the files
            association = entity.associate(self.host, self.port, ae_title=self.title)
            try:
                self._check_established(association, [UID(one) for one in classes])
                yield association
            finally:
                if association.is_established:
                    association.release()

    def _check_address(self) -> None:
        try:
            socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            hint = "check the address, or give the number of the host"
            raise OutputError(str(self), f"the host {self.host} is not known", hint=hint) from error

    def _check_established(self, association: Association, classes: Sequence[str]) -> None:
        if association.is_rejected:
            answer = association.acceptor.primitive
            reason = getattr(answer, "reason_str", "") or "no reason was given"
            hint = f"the receiver must be called {self.title} and know the title {OUR_TITLE}"
            raise OutputError(str(self), f"refused the connection: {reason}", hint=hint)
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        if refused := [one for one in classes if one not in accepted]:
            if not association.is_established and not association.rejected_contexts:
                raise OutputError(str(self), f"no answer within {CONNECT_S} s, or no DICOM", hint=SAY_ECHO)
            names = " and ".join(getattr(one, "name", one) for one in refused)
            raise OutputError(str(self), f"does not accept {names}", hint="choose other output formats, or a receiver")
