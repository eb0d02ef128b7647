"""Where the programs of `rlhf up` listen, and what is checked before any of them is started."""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from data_contracts.errors import UserError

LOOPBACK = "127.0.0.1"
SECRET_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
CLIENT_SECRET_VARIABLE = "PREFECT_API_AUTH_STRING"


@dataclass(frozen=True)
class Addresses:
    """Host and ports. MLflow has no login, so it stays on loopback whatever the host is."""

    host: str = LOOPBACK
    prefect_port: int = 4200
    mlflow_port: int = 5000
    annotation_port: int = 8400

    @property
    def reached_at(self) -> str:
        """The host as programs on this machine reach it."""
        return LOOPBACK if _is_wildcard(self.host) else self.host

    @property
    def prefect(self) -> str:
        """Base URL of Prefect's page."""
        return _url(self.reached_at, self.prefect_port)

    @property
    def api(self) -> str:
        """PREFECT_API_URL."""
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        """Base URL of MLflow, and its tracking URI."""
        return _url(LOOPBACK, self.mlflow_port)

    @property
    def annotation(self) -> str:
        """Base URL of the annotation page."""
        return _url(self.reached_at, self.annotation_port)

    def check(self, secret: str) -> None:
        """Raise UserError for what nobody should start: an open door, or a port that is taken."""
        if secret and not all(secret.partition(":")):
            raise UserError(
                f"{SECRET_VARIABLE} is no name and password", "Write it as name:password"
            )
        if not _is_loopback(self.host) and not secret:
            raise UserError(
                f"On {self.host} anyone who reaches this machine could run code through Prefect's "
                "API, which has no password",
                f"Set {SECRET_VARIABLE} to name:password, or leave out --host",
            )
        used: dict[int, str] = {}
        for host, port, option in (
            (self.host, self.prefect_port, "--prefect-port"),
            (LOOPBACK, self.mlflow_port, "--mlflow-port"),
            (self.host, self.annotation_port, "--annotation-port"),
        ):
            if port in used:
                raise UserError(
                    f"{used[port]} and {option} are both {port}", f"Choose another {option}"
                )
            used[port] = option
            _check_free(host, port, option)


def secret_of(environment: Mapping[str, str]) -> str:
    """The server's name:password, from either of Prefect's two variables, or ""."""
    return environment.get(SECRET_VARIABLE) or environment.get(CLIENT_SECRET_VARIABLE) or ""


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _check_free(host: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # a port in TIME_WAIT is free; one that somebody listens on is not
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"Port {port} of {host} cannot be used: {error.strerror or error}",
            f"End the program that listens there, or choose another with {option}",
        ) from None
