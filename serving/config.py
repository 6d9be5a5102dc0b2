"""Settings of the server: what is served, to whom, and its limits."""

from dataclasses import dataclass, field

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class ServeConfig:
    """What is served, to whom, and the limits; a request beyond one is refused with one sentence."""

    model: str = ""
    """Run folder, a checkpoint in one, a folder made by export.py, the <name>.winner.json of finetune.sh, or
    hf:user/name on a model hub."""
    data_dir: str | None = None
    """Folder that holds the dataset's folder; by default where the run had it."""
    new_items: str = ""
    """File that tokenizer/export.py --assign wrote: its items are recommended too."""
    users: bool = True
    """Answer for users of the dataset by their names, and list these, where the dataset is there."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every network of this machine."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Host names to be called by; empty: at 127.0.0.1 only this machine's own, elsewhere any."""
    token: str = ""
    """What POST /reload must bring as "Authorization: Bearer <token>"; empty: it must come from this machine."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    num_threads: int | None = None
    """Threads that compute on the CPU; by default one for each core."""
    max_wait_ms: float = 5.0
    """Milliseconds that a history waits for others to be computed with."""
    max_batch: int = 32
    """Histories that are computed together."""
    max_queue: int = 256
    """Histories that may wait; a request for more is refused with 503."""
    max_histories: int = 64
    """Histories in a request."""
    max_items: int = 1000
    """Items in a history that a request brings."""
    max_k: int = 100
    """Items that may be asked for."""
    max_beams: int = 100
    """Beams of a search."""
    max_body_bytes: int = 1_000_000
    """Bytes of a request's body, however it is sent."""

    @property
    def hosts(self) -> list[str]:
        """The host names to be called by, in lower case; empty: any."""
        local = list(LOOPBACK) if self.allowed_hosts or self.host in LOOPBACK else []
        return local + [name.lower() for name in self.allowed_hosts]

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = [] if self.model else ["name a run or model folder with --model"]
        least = {"port": 0, "max_wait_ms": 0, "num_threads": 1}
        least |= {name: 1 for name in vars(self) if name.startswith("max_") and name not in least}
        for name, lowest in least.items():
            if (value := getattr(self, name)) is not None and not value >= lowest:
                found.append(f"{name}={value} must be at least {lowest}")
        if self.port > 65535:
            found.append(f"port={self.port} must be at most 65535")
        if not (self.token.isascii() and self.token.isprintable()):
            found.append("token must be of ASCII characters, which a header can carry")
        if self.max_histories > self.max_queue:
            found.append(f"max_queue={self.max_queue} has no room for a request of max_histories={self.max_histories}")
        return found
