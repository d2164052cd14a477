"""A look at a source that lies on this host: what an evaluation of it reads, and where that lies.

The look follows links and may wait for a file system, so a child takes it.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any, Final, Self
from urllib.parse import quote

from inx_sidecar.base.errors import BuildError
from inx_sidecar.builds.ownership import entry_of_others, only_owner, sole_owner, steps_to
from inx_sidecar.config.sources import Flake, LocalRef, NixFile
from inx_sidecar.kernel.mount_table import (
    Mount,
    Place,
    locate,
    mounts_below,
    places_below,
    read_mounts,
)

# File systems that no other machine and no program writes to. An overlay shows files of other
# directories, so it counts only as the root of the host, as in a live system.
_OWN_KINDS: Final = {
    "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs", "nilfs2",
    "ramfs", "reiserfs", "squashfs", "tmpfs", "xfs", "zfs",
}  # fmt: skip
# What decides about the files of a commit, and which programs git runs.
_GIT_FILES: Final = (
    "config", "config.worktree", "HEAD", "index", "info", "modules", "objects",
    "packed-refs", "refs",
)  # fmt: skip
_URL_SAFE: Final = "/!$&'()*+,;=:@~"


@dataclass(frozen=True)
class LocalSource:
    """`owner` is the id of the user who alone decides what is evaluated, or None.

    `doubt` says why there is none. `steps` are the places of the directories and links on the way;
    `trees` those of the directories that are read. `ref` is what Nix is given: no link, and no
    choice, is left in it. `directory` is the highest directory that is read, and `repositories` are
    those of git among the directories. `directory_owner` is the id of the user to whom `directory`
    belongs.
    """

    owner: int | None
    doubt: str
    steps: tuple[Place, ...]
    trees: tuple[Place, ...]
    ref: str
    directory: str
    repositories: tuple[str, ...] = ()
    directory_owner: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        places = {key: tuple(Place(**each) for each in value[key]) for key in ("steps", "trees")}
        return cls(**value | places | {"repositories": tuple(value["repositories"])})


def check_path(source: Flake | NixFile) -> None:
    """BuildError if the path of `source` shows that a look could wait for an instance for ever."""
    local = source.local() if isinstance(source, Flake) else None
    path = source.path if isinstance(source, NixFile) else local.path if local else ""
    if f"/{path.lstrip('/')}/".startswith("/proc/"):
        raise BuildError(f"{path} lies in /proc, which leads into processes; name its real path")


def look_at(source: Flake | NixFile) -> LocalSource:
    """BuildError if there is no such source."""
    return _look_at_file(source.path) if isinstance(source, NixFile) else _look_at_flake(source)


def _look_at_flake(source: Flake) -> LocalSource:
    local, directory = source.local(), source.directory()
    assert local is not None and directory is not None
    file = f"{directory}/flake.nix"
    # Nix would search the directories above, which may be anybody's.
    if not os.path.exists(file):
        raise BuildError(
            f"there is no {file}: name the directory of a flake in user.inx.flake, or a Nix file "
            "in user.inx.file"
        )
    base = os.path.realpath(local.path)
    # Links in /proc lead elsewhere than their texts say.
    if not os.path.samefile(local.path, base):
        raise BuildError(f"{local.path} is not {base}, where its links lead")
    owner = sole_owner(file)
    root = base if local.scheme == "git+file" else None
    if not local.scheme:
        root = _repository_of(base, owner)
    ref = _reference(local, base, root)
    git_directories = _git_directories(root) if root else []
    return _judged([file], root or base, git_directories, ref, whole_tree=True)


def _look_at_file(path: str) -> LocalSource:
    if not os.path.exists(path):
        raise BuildError(f"there is no {path}: correct user.inx.file")
    real = os.path.realpath(path)
    files = [path]
    if os.path.isdir(real):
        files.append(f"{path}/default.nix")
        if not os.path.exists(files[-1]):
            is_flake = os.path.exists(f"{path}/flake.nix")
            way_out = f"set user.inx.flake={path}" if is_flake else "name a Nix file"
            raise BuildError(f"there is no {files[-1]}: {way_out} in place of user.inx.file={path}")
    if not os.path.samefile(path, real):
        raise BuildError(f"{path} is not {real}, where its links lead")
    tree = os.path.dirname(os.path.realpath(files[-1]))
    return _judged(files, tree, [], real, whole_tree=False)


def _judged(
    files: list[str], tree: str, git_directories: list[str], ref: str, *, whole_tree: bool
) -> LocalSource:
    """The source that is read from `tree`: all of it with `whole_tree`, as Nix copies a flake."""
    decisive = [*files]
    for directory in git_directories:
        names = (directory, *(f"{directory}/{name}" for name in _GIT_FILES))
        decisive += [name for name in names if os.path.lexists(name)]
    hooks = [hook for directory in git_directories for hook in _hooks_in(directory)]
    owner = only_owner(decisive)
    doubt = "" if owner is not None else f"several users can change {tree}"
    if owner is not None:
        other = entry_of_others(tree, owner) if whole_tree else ""
        found = (entry_of_others(path, owner, is_git=True) for path in git_directories)
        strangers = (hook for hook in hooks if sole_owner(hook) not in (0, owner))
        if other := next(filter(None, (other, *found, *strangers)), ""):
            owner, doubt = None, f"several users can change {other}"
    mounts = read_mounts()
    repositories = (tree, *git_directories) if git_directories else ()
    belongs_to = os.stat(tree).st_uid
    try:
        located = [
            locate(mounts, step)
            for step in {s for path in (*decisive, *hooks) for s in steps_to(path)}
        ]
        directories = (tree, *git_directories)
        trees = {place for path in directories for place in places_below(mounts, path)}
        read = [mount for mount, _ in (*located, *(locate(mounts, path) for path in directories))]
    except OSError as error:
        owner, doubt = None, f"it is not known where {error.filename} lies ({error.strerror})"
        return LocalSource(owner, doubt, (), (), ref, tree, repositories, belongs_to)
    read += [mount for path in directories for mount in mounts_below(mounts, path)]
    if owner is not None and (strange := _strange_mount(mounts, read)):
        owner = None
        doubt = f"others may write the file system {strange.point} of {tree} ({strange.kind})"
    steps = tuple({place for _, place in located})
    return LocalSource(owner, doubt, steps, tuple(trees), ref, tree, repositories, belongs_to)


def _hooks_in(git: str) -> list[str]:
    """The directory of hooks and the links in it: what lies elsewhere than in `git`."""
    directory = f"{git}/hooks"
    if not os.path.lexists(directory):
        return []
    try:
        with os.scandir(directory) as entries:
            return [directory, *(entry.path for entry in entries if entry.is_symlink())]
    except OSError:
        return [directory]


def _strange_mount(mounts: list[Mount], read: list[Mount]) -> Mount | None:
    """The first of the mounts `read` with a file system that not only this host writes."""
    host_roots = {each.device for each in mounts if each.point == "/"}
    for mount in read:
        if mount.kind == "overlay" and mount.device in host_roots:
            continue
        if mount.kind not in _OWN_KINDS:
            return mount
    return None


def _repository_of(base: str, owner: int | None) -> str | None:
    """The directory whose `.git` Nix would find first, from `base` upwards (parseFlakeRef).

    Not if the `.git` is of somebody else, who could have made it after the flake, as in /tmp.
    """
    root = base
    while root != "/":
        git = f"{root}/.git"
        if os.path.lexists(git):
            same = os.lstat(git).st_uid == os.stat(base).st_uid if owner is None else None
            return root if same or (same is None and sole_owner(git) == owner) else None
        root = os.path.dirname(root)
    return None


def _git_directories(root: str) -> list[str]:
    """The directories of git of a work tree (gitrepository-layout(5)): `.git`, or where this file
    or link leads to, and the directory that all work trees share."""
    git = f"{root}/.git"
    if not os.path.lexists(git):
        return [root]  # a bare repository
    found = [os.path.realpath(git)]
    if os.path.isfile(git):
        found.append(_path_in(git, "gitdir:", root))
    common = f"{found[-1]}/commondir"
    if os.path.isfile(common):
        found.append(_path_in(common, "", found[-1]))
    return found


def _path_in(file: str, mark: str, base: str) -> str:
    with open(file, errors="surrogateescape") as opened:
        text = opened.read(4096).removeprefix(mark).strip()
    return os.path.realpath(os.path.join(base, text))


def _reference(local: LocalRef, base: str, root: str | None) -> str:
    """The reference for Nix, which finds the same flake by it without a search."""
    query = [part for part in local.query.split("&") if part]
    if root is None:
        return "?".join(part for part in (f"path:{_quoted(base)}", "&".join(query)) if part)
    from_root = base.removeprefix(root).strip("/")
    below = "/".join(part for part in (from_root, local.subdirectory) if part)
    query = [part for part in query if not part.startswith("dir=")]
    if below:
        query.append(f"dir={_quoted(below, _URL_SAFE.replace('&', ''))}")
    if not local.scheme and os.path.exists(f"{root}/.git/shallow"):
        query.append("shallow=1")
    url = f"git+file://{_quoted(root)}"
    return f"{url}?{'&'.join(query)}" if query else url


def _quoted(path: str, safe: str = _URL_SAFE) -> str:
    """`path`, which may be any bytes, in a URL."""
    return quote(os.fsencode(path), safe)
