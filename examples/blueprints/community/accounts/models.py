"""Users."""

import secrets

from flask_login import UserMixin
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.security import check_password_hash, generate_password_hash

from ..extensions import Model, db, login_manager


class User(Model, UserMixin):
    __tablename__ = "user"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(db.String(32), unique=True)
    password_hash: Mapped[str]
    login_key: Mapped[str] = mapped_column(unique=True, default=secrets.token_urlsafe)
    """The key that names the user in the session cookie. A new key makes all earlier cookies void."""

    def get_id(self) -> str:
        """Return the key. Flask-Login calls this method."""
        return self.login_key

    def set_password(self, password: str) -> None:
        self.password_hash = generate_password_hash(password)

    def has_password(self, password: str) -> bool:
        return check_password_hash(self.password_hash, password)

    def log_out_everywhere(self) -> None:
        self.login_key = secrets.token_urlsafe()


@login_manager.user_loader
def load_user(login_key: str) -> User | None:
    return db.session.scalar(db.select(User).filter_by(login_key=login_key))
