"""The prompt bank: source prompts, target prompts and modules G as immutable versions with moving aliases.

    <root>/<kind>/<name>/v000001/{manifest.json, manifest.sha256, tensors.safetensors}
    <root>/<kind>/<name>/aliases.json

Readers take no lock and never see half a version: a version appears in one step and is never changed again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from attempt_ray.bank.aliases import (
    CANDIDATE,
    CHAMPION,
    Aliases,
    Canary,
    read_aliases,
    timestamp,
    write_aliases,
)
from attempt_ray.bank.fsck import Problem, check_bank, check_version
from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.manifest import Arrays, Facts, ImportRecord, Manifest, check_tensors
from attempt_ray.bank.names import (
    KINDS,
    Kind,
    Reference,
    Version,
    check_alias,
    check_kind,
    check_name,
    is_name,
)
from attempt_ray.bank.places import open_storage
from attempt_ray.bank.storage import Storage
from attempt_ray.bank.versions import (
    FILES,
    TENSORS,
    Loaded,
    assemble,
    encode_manifest,
    encode_tensors,
    names,
    numbers,
    read_manifest,
    read_manifest_of,
    read_tensors,
    sha256,
    taken_numbers,
)
from attempt_ray.errors import BankError, IntegrityError, StorageError, unknown_name

_TRIES = 1000
"""Numbers tried in a row for one publication; every one but the first is lost to another writer."""


Versions = list[Version]
Problems = list[Problem]
Numbers = list[int]


class Bank:
    """The bank at a local path or pyarrow filesystem URI; it is created by the first publication.

    Every method raises StorageError where the disk or store refuses, and IntegrityError where a stored file does not
    hold what was written; neither changes anything.
    """

    def __init__(self, uri: str) -> None:
        """Open the bank.

        Raises:
            BankError: `uri` is neither a path nor a URI that pyarrow opens.
        """
        self._storage: Storage = open_storage(uri)

    def __repr__(self) -> str:
        return f"Bank({self.place!r})"

    @property
    def place(self) -> str:
        """Where the bank is, without credentials."""
        return self._storage.place()

    def publish(self, kind: Kind, name: str, tensors: Arrays, facts: Facts) -> Version:
        """Add a version and return it, durably; or return the one that holds the same tensors of the same run.

        Args:
            kind: Source prompt, target prompt or module G.
            name: What to call it, usually its task.
            tensors: ``prompt`` [P, H], or the four tensors of G (`check_tensors`), in float32.
            facts: What the run knows about it.

        Raises:
            BankError: Kind, name, tensors or facts cannot be used; NaN and infinity are refused.
        """
        kind, name = check_kind(kind), check_name(name)
        check_tensors(kind, tensors, width=facts.backbone.width)
        data, records = encode_tensors(tensors)
        manifest = Manifest(
            **dict(facts),
            kind=kind,
            name=name,
            number=1,
            created=timestamp(),
            tensors=records,
            files={TENSORS: sha256(data)},
        )
        return self._add(manifest, data)

    def resolve(self, reference: str) -> Version:
        """Return the version that `reference` means now: its champion, else its newest, where it names none.

        Raises:
            BankError: It is malformed, or there is no such prompt, alias or version, with the nearest one.
        """
        wanted = Reference.parse(reference)
        number = wanted.number
        # Before the versions are listed: an alias moves only to a version that is there already.
        current = read_aliases(self._storage, wanted.kind, wanted.name).current if number is None else {}
        known = self._numbers(wanted.kind, wanted.name)
        if number is None:
            if wanted.alias is not None and wanted.alias not in current:
                raise BankError(unknown_name(f"alias of {wanted.kind}/{wanted.name}", wanted.alias, current))
            number = current.get(wanted.alias or CHAMPION, known[-1])
        if number not in known:
            raise BankError(
                f"no version v{number} of {wanted.kind}/{wanted.name}; the newest is v{known[-1]}"
            )
        return Version(wanted.kind, wanted.name, number)

    def load(self, reference: str) -> Loaded:
        """Return the tensors and manifest of a version, every digest checked.

        Raises:
            BankError: As `resolve`.
        """
        return self._load(self.resolve(reference))

    def show(self, reference: str) -> Manifest:
        """Return the manifest of a version, its digest checked.

        Raises:
            BankError: As `resolve`.
        """
        return read_manifest_of(self._storage, self.resolve(reference))[0]

    def list(self, kind: Kind | None = None) -> Versions:
        """Return every version, or those of one kind, sorted by kind, name and number.

        Raises:
            BankError: There is no such kind.
        """
        kinds = sorted(KINDS) if kind is None else [check_kind(kind)]
        return [
            Version(each, name, number)
            for each in kinds
            for name in names(self._storage, each)
            for number in self.numbers(each, name)
        ]

    def aliases(self, kind: Kind, name: str) -> Aliases:
        """Return the aliases of a prompt and the moves they made.

        Raises:
            BankError: There is no such prompt.
        """
        self._numbers(check_kind(kind), check_name(name))
        return read_aliases(self._storage, kind, name)

    def set_alias(
        self, kind: Kind, name: str, alias: str, number: int, *, expected: int | Literal["any"] | None = "any"
    ) -> Aliases:
        """Point an alias to a version, which is read and checked first.

        Args:
            kind: Kind of the prompt.
            name: Name of the prompt.
            alias: The alias, such as ``champion``.
            number: The version.
            expected: Where the alias must point now for the move to happen; None: nowhere yet.

        Raises:
            BankError: There is no such version, or the alias points elsewhere than expected.
        """
        alias = check_alias(alias)
        version = self.load(Version(check_kind(kind), check_name(name), number).reference).version
        with self._storage.lock():
            aliases = read_aliases(self._storage, kind, name)
            current = aliases.current.get(alias)
            if expected not in ("any", current):
                raise BankError(
                    f"{kind}/{name}@{alias} points to {_shown(current)}, expected {_shown(expected)}: somebody moved"
                    " it; look at what it is now and decide again"
                )
            if current == version.number:
                return aliases
            return self._move(aliases.moved(alias, version.number, action="set"))

    def promote(self, reference: str, *, expected: int | Literal["any"] | None = "any") -> Version:
        """Make a version the champion: where `reference` names none, the candidate, else the newest.

        Args:
            reference: What to promote.
            expected: Where the champion must point now, as for `set_alias`.

        Raises:
            BankError: As `resolve` and `set_alias`.
        """
        version = self.to_promote(reference)
        self.set_alias(version.kind, version.name, CHAMPION, version.number, expected=expected)
        return version

    def to_promote(self, reference: str) -> Version:
        """Return what `promote` makes the champion.

        Raises:
            BankError: As `resolve`.
        """
        wanted = Reference.parse(reference)
        if wanted.alias is not None or wanted.number is not None:
            return self.resolve(reference)
        newest = self._numbers(wanted.kind, wanted.name)[-1]
        candidate = self.aliases(wanted.kind, wanted.name).current.get(CANDIDATE, newest)
        return Version(wanted.kind, wanted.name, candidate)

    def rollback(self, kind: Kind, name: str, *, alias: str = CHAMPION) -> Version:
        """Point an alias back to where it pointed before; again, and it goes back one more.

        Raises:
            BankError: There is no such prompt, or the alias never pointed elsewhere.
        """
        self._numbers(check_kind(kind), check_name(name))
        with self._storage.lock():
            aliases = read_aliases(self._storage, kind, name)
            number = aliases.previous(check_alias(alias))
            if number is None:
                raise BankError(
                    f"{kind}/{name}@{alias} has no earlier version to go back to; set it by number"
                )
            version = self.load(Version(kind, name, number).reference).version
            self._move(aliases.moved(alias, number, action="rollback"))
        return version

    def start_canary(self, kind: Kind, name: str, canary: Canary) -> Aliases:
        """Let a version, which is read and checked first, answer a share of what the champion would.

        Raises:
            BankError: There is no such version, no champion, or it is the champion.
        """
        version = self.load(Version(check_kind(kind), check_name(name), canary.version).reference).version
        with self._storage.lock():
            aliases = read_aliases(self._storage, kind, name)
            champion = aliases.current.get(CHAMPION)
            if champion is None:
                raise BankError(f"{kind}/{name} has no champion to compare {version} with; promote one first")
            if champion == version.number:
                raise BankError(f"{version} is the champion already; try another version")
            return self._move(aliases.with_canary(canary))

    def end_canary(
        self,
        kind: Kind,
        name: str,
        *,
        version: int | None = None,
        state: Literal["rolled back", "stopped"] = "stopped",
        reason: str | None = None,
    ) -> Aliases:
        """End the trial under way, unless it is another version's; the champion answers everything again.

        Args:
            kind: Kind of the prompt.
            name: Name of the prompt.
            version: The version on trial; None is any.
            state: How it ended.
            reason: Why it was rolled back.

        Raises:
            BankError: There is no such prompt.
        """
        self._numbers(check_kind(kind), check_name(name))
        with self._storage.lock():
            aliases = read_aliases(self._storage, kind, name)
            trial = aliases.trial
            if trial is None or version not in (None, trial.version):
                return aliases
            return self._move(
                aliases.with_canary(trial.model_copy(update={"state": state, "reason": reason}))
            )

    def remove(self, reference: str) -> Version:
        """Remove a version that nothing points to and nothing is mixed from; its number is not given again.

        Raises:
            BankError: It is not named with its number, is not there, or is in use.
        """
        wanted = Reference.parse(reference)
        if wanted.number is None:
            raise BankError(f"got '{reference}'; wanted a version with its number, such as {reference}@v1")
        version = Version(wanted.kind, wanted.name, wanted.number)
        with self._storage.lock():
            aliases = read_aliases(self._storage, version.kind, version.name)
            if version.number not in aliases.removed:
                self.resolve(reference)
                self._check_unused(version, aliases)
                self._move(aliases.without(version.number))
            self._storage.remove(version.directory)
        return version

    def stamps(self) -> Mapping[str, object]:
        """Return, by `kind/name`, what differs once a version or an alias has changed; None may have changed."""
        return {
            f"{kind}/{name}": stamp
            for kind in KINDS
            for name, stamp in self._storage.stamps(kind).items()
            if is_name(name)
        }

    def numbers(self, kind: Kind, name: str) -> Numbers:
        """Return the numbers of a prompt's versions, rising; none where there is no such prompt."""
        removed = read_aliases(self._storage, check_kind(kind), check_name(name)).removed
        return [number for number in numbers(self._storage, kind, name) if number not in removed]

    def verify(self, reference: str | None = None) -> Problems:
        """Read the whole bank, or the version that `reference` means, and return what is wrong with it.

        Raises:
            BankError: There is no such version.
        """
        if reference is None:
            return check_bank(self._storage)
        return check_version(self._storage, self.resolve(reference))

    def export(self, reference: str, directory: Path) -> Path:
        """Copy a version, byte for byte, into a new local directory and return its absolute path.

        Raises:
            BankError: `directory` exists, or as `resolve`.
        """
        version, target = self.resolve(reference), directory.expanduser().absolute()
        manifest, manifest_bytes = read_manifest_of(self._storage, version)
        _, tensor_bytes = read_tensors(self._storage, version.directory, manifest)
        if os.path.lexists(target):
            raise BankError(f"{target} exists; export to a directory that does not")
        files = assemble(tensors=tensor_bytes, manifest=manifest_bytes)
        LocalStorage(target.parent).commit(target.name, files)
        return target

    def import_(self, directory: Path) -> Version:
        """Add an exported version under the next free number, and return it.

        Its tensors stay byte for byte; its manifest tells what it was called where it came from.

        Raises:
            BankError: There is no such directory.
            IntegrityError: Files are missing, were changed or added, or are links.
        """
        given = directory.expanduser().resolve()
        if not given.is_dir():
            raise BankError(f"no directory {given}; give one that 'export' wrote")
        source = LocalStorage(given.parent)
        found = {entry.name for entry in source.entries(given.name)}
        if found - set(FILES):
            raise IntegrityError(
                f"{given}: expected {', '.join(FILES)}, found also {sorted(found - set(FILES))}"
            )
        manifest, manifest_bytes = read_manifest(source, given.name)
        _, tensor_bytes = read_tensors(source, given.name, manifest)
        origin = ImportRecord(reference=manifest.reference, manifest_sha256=sha256(manifest_bytes))
        return self._add(manifest.model_copy(update={"imported": origin}), tensor_bytes)

    def _add(self, manifest: Manifest, tensors: bytes) -> Version:
        """Commit a version under the next free number, whatever number its manifest has now."""
        kind, name = manifest.kind, manifest.name
        encode_manifest(manifest)  # what it refuses is refused before the bank is touched
        with self._storage.lock():
            self._storage.sweep(f"{kind}/{name}")
            same = self._same(manifest)
            if same is not None:
                self._storage.settle(f"{kind}/{name}")
                return same
            removed = read_aliases(self._storage, kind, name).removed
            first = max([*taken_numbers(self._storage, kind, name), *removed], default=0) + 1
            for number in range(first, first + _TRIES):
                version = Version(kind, name, number)
                numbered = encode_manifest(manifest.model_copy(update={"number": number}))
                with suppress(FileExistsError):
                    self._storage.commit(version.directory, assemble(tensors=tensors, manifest=numbered))
                    return version
        raise StorageError(
            f"cannot publish {kind}/{name}: v{first} to v{first + _TRIES - 1} were taken by others; try again"
        )

    def _same(self, manifest: Manifest) -> Version | None:
        """Return the version that holds the same tensors of the same run; a damaged one is not it."""
        for number in reversed(self.numbers(manifest.kind, manifest.name)):
            version = Version(manifest.kind, manifest.name, number)
            with suppress(IntegrityError):
                there, _ = read_manifest_of(self._storage, version)
                if (there.config_digest, there.files) == (manifest.config_digest, manifest.files):
                    read_tensors(self._storage, version.directory, there)
                    return version
        return None

    def _load(self, version: Version) -> Loaded:
        manifest, _ = read_manifest_of(self._storage, version)
        tensors, _ = read_tensors(self._storage, version.directory, manifest)
        return Loaded(version=version, manifest=manifest, tensors=tensors)

    def _numbers(self, kind: Kind, name: str) -> Numbers:
        found = self.numbers(kind, name)
        if not found:
            known = {f"{version.kind}/{version.name}" for version in self.list()}
            raise BankError(f"{unknown_name('prompt', f'{kind}/{name}', known)} (bank {self.place})")
        return found

    def _check_unused(self, version: Version, aliases: Aliases) -> None:
        named = [f"@{alias}" for alias, number in aliases.current.items() if number == version.number]
        if aliases.trial is not None and aliases.trial.version == version.number:
            named.append("its canary")
        if named:
            raise BankError(f"{version} is in use: {', '.join(named)} points to it; move that first")
        for other in self.list():
            mixture = self.show(other.reference).mixture
            if mixture is not None and version.reference in (*mixture.sources, mixture.attention):
                raise BankError(f"{version} is in use: {other} is mixed from it; remove that first")

    def _move(self, aliases: Aliases) -> Aliases:
        write_aliases(self._storage, aliases)
        if (
            not self._storage.commits_whole
            and read_aliases(self._storage, aliases.kind, aliases.name) != aliases
        ):
            raise BankError(
                f"another process moved the aliases of {aliases.kind}/{aliases.name} at the same moment;"
                " look at what they are now and decide again"
            )
        return aliases


def _shown(number: object) -> str:
    return "no version" if number is None else f"v{number}"
