"""Kinds of reads and writes for random programs: each takes two numbers, and a read returns what it saw by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from sqlalchemy import and_, delete, exists, func, insert, literal_column, or_, select, text, tuple_, union_all, update
from sqlalchemy.orm import (
    Session,
    aliased,
    immediateload,
    joinedload,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    with_polymorphic,
)

from tests.tokens.reading import Account, buyers
from tests.tokens.world import (
    Book,
    Dog,
    Engineer,
    Line,
    Order,
    Person,
    Pet,
    Plain,
    Price,
    Remark,
    Shelf,
    Tag,
    User,
    user_tags,
)

Read: TypeAlias = Callable[[Session, int, int], Any]
Write: TypeAlias = Callable[[Session, int, int], None]

TAGS = ("red", "blue", "solo", "Red", "new", "none")
SHELVES = ("A", "B", "C", "D")
NAMES = ("a", "b", "c", "x", "y")


def values(instance: Any) -> Any:
    """Return the columns of an instance, loading what is missing."""
    if instance is None:
        return None
    mapper = instance.__mapper__
    return (mapper.class_.__name__, *(repr(getattr(instance, each.key)) for each in mapper.column_attrs))


def seen(rows: Any) -> list[Any]:
    """Return rows, entities among them, by value and in an order that does not matter."""
    return sorted(
        (tuple(values(each) if hasattr(each, "__mapper__") else repr(each) for each in row) for row in rows), key=repr
    )


def rows(make: Callable[[int, int], Any]) -> Read:
    """Return a read that executes a statement."""
    return lambda s, a, b: seen(s.execute(make(a, b)).unique().all())


def orders_of(user: Any) -> list[Any]:
    return sorted(
        (values(order), [values(line) for line in sorted(order.lines, key=lambda x: x.number)]) for order in user.orders
    )


def eager(option: Any) -> Read:
    """Return a read of users with their orders, loaded in some way."""

    def read(s: Session, a: int, b: int) -> Any:
        users = s.scalars(select(User).where(User.id.in_([a, b])).options(option)).unique().all()
        return sorted((values(user), orders_of(user)) for user in users)

    return read


def lazy(s: Session, a: int, b: int) -> Any:
    user = s.get(User, a)
    return None if user is None else (values(user), orders_of(user), sorted(map(values, user.tags)))


def queried(s: Session, a: int, b: int) -> Any:
    users = s.scalars(select(User).where(User.id.in_([a, b]))).all()
    return sorted((values(user), orders_of(user)) for user in users)


def to_one(s: Session, a: int, b: int) -> Any:
    order = s.get(Order, a)
    return None if order is None else (values(order), values(order.user))


def to_one_selectin(s: Session, a: int, b: int) -> Any:
    orders = s.scalars(select(Order).where(Order.id.in_([a, b])).options(selectinload(Order.user))).all()
    return sorted((values(order), values(order.user)) for order in orders)


def soft(s: Session, a: int, b: int) -> Any:
    remark = s.get(Remark, a)
    return None if remark is None else (values(remark), values(remark.user))


def refreshed(s: Session, a: int, b: int) -> Any:
    pet = s.get(Pet, a)
    if pet is not None:
        s.expire(pet)
    return values(pet)


def account(s: Session, a: int, b: int) -> Any:
    found = s.get(Account, a)
    return None if found is None else (values(found), found.size)


me, other = aliased(User), aliased(User)
everybody = with_polymorphic(Person, "*")
TAGGED = literal_column("(SELECT count(*) FROM tags)")
HAS_ORDER = Order.user_id == User.id
LAST_NAME = select(func.max(me.name)).scalar_subquery()
SPENT = select(func.sum(Order.total)).where(Order.user_id == User.id).scalar_subquery()


def bosses(a: int, b: int) -> Any:
    chain = select(Person.id, Person.boss_id).where(Person.id == a).cte("chain", recursive=True)
    return select(chain.union(select(Person.id, Person.boss_id).join(chain, chain.c.boss_id == Person.id)))


READS: dict[str, Read] = {
    "get": lambda s, a, b: values(s.get(User, a)),
    "get composite": lambda s, a, b: values(s.get(Line, (a, b))),
    "get text": lambda s, a, b: values(s.get(Tag, TAGS[a % 6])),
    "get text of two": lambda s, a, b: values(s.get(Plain, (a, "x1"[b % 2]))),
    "get rounded": lambda s, a, b: values(s.get(Price, a)),
    "get shelf": lambda s, a, b: values(s.get(Shelf, SHELVES[a % 4])),
    "get single": lambda s, a, b: values(s.get(Dog, a)),
    "get joined": lambda s, a, b: values(s.get(Engineer, a)),
    "get base": lambda s, a, b: values(s.get(Person, a)),
    "get account": account,
    "refresh": refreshed,
    "lazy": lazy,
    "queried, then lazy": queried,
    "to one": to_one,
    "to one selectin": to_one_selectin,
    "soft": soft,
    "selectin": eager(selectinload(User.orders).selectinload(Order.lines)),
    "joined": eager(joinedload(User.orders).joinedload(Order.lines)),
    "subquery": eager(subqueryload(User.orders)),
    "immediate": eager(immediateload(User.orders)),
    "selectin polymorphic": rows(
        lambda a, b: select(Person).where(Person.id.in_([a, b])).options(selectin_polymorphic(Person, [Engineer]))
    ),
    "pinned": rows(lambda a, b: select(User.name).where(User.id == a)),
    "pinned and more": rows(lambda a, b: select(User).where(User.id == a, User.name == NAMES[b % 5])),
    "pinned in": rows(lambda a, b: select(Order).where(Order.id.in_([a, b]), Order.user_id.is_not(None))),
    "pinned or": rows(lambda a, b: select(User).where(or_(User.id == a, and_(User.id == b, User.name != "a")))),
    "pinned tuples": rows(lambda a, b: select(Line).where(tuple_(Line.order_id, Line.number).in_([(a, b), (b, a)]))),
    "pinned text": rows(lambda a, b: select(Tag).where(Tag.name == TAGS[a % 6])),
    "pinned alias": rows(lambda a, b: select(me, other).where(me.id == a, other.id == me.id)),
    "pinned union": rows(lambda a, b: union_all(select(User.name).where(User.id == a), select(Tag.name))),
    "pinned in one of two": rows(
        lambda a, b: union_all(select(User.name).where(User.id == a), select(User.name).where(User.code == "c1"))
    ),
    "pinned outside": rows(lambda a, b: select(User.name, LAST_NAME).where(User.id == a)),
    "pinned limit": rows(lambda a, b: select(select(User).where(User.id == a).limit(1).subquery())),
    "pinned polymorphic": rows(lambda a, b: select(everybody).where(everybody.id == a)),
    "pinned and spent": rows(lambda a, b: select(User.name, SPENT).where(User.id == a)),
    "pinned and literal": rows(lambda a, b: select(User.name, TAGGED).where(User.id == a)),
    "pinned not exists": rows(lambda a, b: select(User.id).where(~exists().where(HAS_ORDER, User.id == a))),
    "pinned outer join": rows(
        lambda a, b: select(User, Order).outerjoin(Order, Order.user_id == User.id).where(User.id == a)
    ),
    "count": rows(lambda a, b: select(func.count()).select_from(Order).where(Order.user_id == a)),
    "filter": rows(lambda a, b: select(User).where(User.name == NAMES[b % 5])),
    "join": rows(lambda a, b: select(User.name, Order.total).join(User.orders).where(Order.total >= b)),
    "many to many": rows(lambda a, b: select(User.id, Tag.name, Tag.colour).join(User.tags)),
    "secondary": rows(lambda a, b: select(user_tags).where(user_tags.c.user_id == a)),
    "exists": rows(lambda a, b: select(User.id).where(exists().where(Order.user_id == User.id, Order.total > b))),
    "recursive": rows(bosses),
    "hierarchy": rows(lambda a, b: select(everybody)),
    "view": rows(lambda a, b: select(buyers)),
    "text": rows(lambda a, b: text("SELECT name FROM users WHERE id = :a").bindparams(a=a)),
    "text with": rows(
        lambda a, b: text("WITH q AS (SELECT shelf AS n FROM books) SELECT q.n, t.name FROM q, tags t")
    ),
    "text view": rows(lambda a, b: text("SELECT tag FROM rich_buyers")),
    "text entity": rows(lambda a, b: select(User).from_statement(text("SELECT * FROM users"))),
    "driver": lambda s, a, b: seen(s.connection().exec_driver_sql("SELECT id, user_id, total FROM orders").all()),
}  # fmt: skip


# --- writes -----------------------------------------------------------------------------------------------------------


def change(entity: Any, attribute: str, make: Callable[[int, int], Any]) -> Write:
    """Return a write of one attribute of an instance, if there is such an instance."""

    def write(s: Session, a: int, b: int) -> None:
        found = s.get(entity, a)
        if found is not None:
            setattr(found, attribute, make(a, b))

    return write


def put(make: Callable[[int, int], Any], key: Callable[[int, int], Any]) -> Write:
    """Return a write that adds an instance, or deletes it if it is there."""

    def write(s: Session, a: int, b: int) -> None:
        made = make(a, b)
        found = s.get(type(made), key(a, b))
        if found is None:
            s.add(made)
        else:
            s.delete(found)

    return write


def run(make: Callable[[int, int], Any]) -> Write:
    """Return a write that executes a statement."""

    def write(s: Session, a: int, b: int) -> None:
        s.execute(make(a, b))

    return write


def tag_user(s: Session, a: int, b: int) -> None:
    user, tag = s.get(User, a), s.get(Tag, TAGS[b % 6])
    if user is not None and tag is not None:
        (user.tags.remove if tag in user.tags else user.tags.append)(tag)


def rename_shelf(s: Session, a: int, b: int) -> None:
    if s.get(Shelf, SHELVES[b % 4]) is None:
        s.execute(update(Shelf).where(Shelf.code == SHELVES[a % 4]).values(code=SHELVES[b % 4]))


WRITES: dict[str, Write] = {
    "rename user": change(User, "name", lambda a, b: NAMES[b % 5]),
    "move order": change(Order, "user_id", lambda a, b: b if b < 4 else None),
    "change order": change(Order, "total", lambda a, b: b),
    "change person": change(Person, "name", lambda a, b: NAMES[b % 5]),
    "change skill": change(Engineer, "skill", lambda a, b: NAMES[b % 5]),
    "change pet": change(Pet, "name", lambda a, b: NAMES[b % 5]),
    "change remark": change(Remark, "about", lambda a, b: b),
    "user": put(lambda a, b: User(id=a + 3, name=NAMES[b % 5]), lambda a, b: a + 3),
    "order": put(lambda a, b: Order(id=a, user_id=1 + b % 3, total=b), lambda a, b: a),
    "line": put(lambda a, b: Line(order_id=1, number=b), lambda a, b: (1, b)),
    "engineer": put(lambda a, b: Engineer(id=a + 3, skill=NAMES[b % 5]), lambda a, b: a + 3),
    "person": put(lambda a, b: Person(id=a + 3, boss_id=1), lambda a, b: a + 3),
    "dog": put(lambda a, b: Dog(id=a, name=NAMES[b % 5]), lambda a, b: a),
    "remark": put(lambda a, b: Remark(id=a, about=b), lambda a, b: a),
    "price": put(lambda a, b: Price(amount=a), lambda a, b: a),
    "plain": put(lambda a, b: Plain(a=1 + a % 3, b="x1"[b % 2]), lambda a, b: (1 + a % 3, "x1"[b % 2])),
    "book": put(lambda a, b: Book(id=a, shelf=None), lambda a, b: a),
    "shelf": put(lambda a, b: Shelf(code=SHELVES[a % 4]), lambda a, b: SHELVES[a % 4]),
    "tag": put(lambda a, b: Tag(name=("new", "none")[a % 2]), lambda a, b: ("new", "none")[a % 2]),
    "colour": run(lambda a, b: update(Tag).where(Tag.name == TAGS[a % 6]).values(colour=NAMES[b % 5])),
    "spell tag": run(lambda a, b: update(Tag).where(Tag.name == "solo").values(name="Solo" if a % 2 else "solo")),
    "tag user": tag_user,
    "rename shelf": rename_shelf,
    "core user": run(lambda a, b: update(User).where(User.id == a).values(name=NAMES[b % 5])),
    "core remark": run(lambda a, b: update(Remark).where(Remark.id == a).values(text=NAMES[b % 5])),
    "core filter": run(lambda a, b: update(User).where(User.name == NAMES[a % 5]).values(name=NAMES[b % 5])),
    "core all": run(lambda a, b: update(Order).values(total=Order.total + b)),
    "core delete": run(lambda a, b: delete(Line).where(Line.number == b)),
    "core insert": run(lambda a, b: insert(Remark).values(about=a, text=NAMES[b % 5])),
    "insert from select": run(
        lambda a, b: insert(Remark).from_select(["about", "text"], select(User.id, User.name).where(User.id == a))
    ),
    "text": run(lambda a, b: text("UPDATE users SET name = :n WHERE id = :a").bindparams(a=a, n=NAMES[b % 5])),
    "text delete": run(lambda a, b: text("DELETE FROM user_tags WHERE user_id = :a").bindparams(a=a)),
    "text all": run(lambda a, b: text("UPDATE orders SET total = total + 1")),
}  # fmt: skip
