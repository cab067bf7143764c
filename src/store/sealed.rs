//! Tables with a part that is sealed: its rows by the key that has sealed them, for when keys change.

/// What the change of keys needs of a table, whose `$sealed` is sealed by the key that `key_version` names.
macro_rules! resealing {
    ($table:ident, $row:ty, $id:ty, $sealed:ident) => {
        /// The next rows that a key has sealed.
        ///
        /// # Errors
        /// Where the database fails.
        pub async fn next_of_key(
            conn: &mut $crate::store::Conn,
            permit: &$crate::model::Permit<$crate::model::RotateKeys>,
            version: &str,
            after: Option<$id>,
            most: i64,
        ) -> $crate::store::Result<Vec<$id>> {
            let after = after.map(|id| id.to_string()).unwrap_or_default();
            Ok($crate::store::backend::on_conn!(conn, |c| $table::table
                .filter($table::organization_id.eq(permit.organization()).and($table::key_version.eq(version)))
                .filter($table::id.gt(&after))
                .order($table::id)
                .limit(most)
                .select($table::id)
                .load(c)
                .await?))
        }

        /// Those of the rows that the key has still sealed, in order, locked to the end of the transaction.
        ///
        /// # Errors
        /// Where the database fails.
        pub async fn lock_of_key(
            tx: &mut $crate::store::Tx,
            permit: &$crate::model::Permit<$crate::model::RotateKeys>,
            version: &str,
            ids: &[$id],
        ) -> $crate::store::Result<Vec<$row>> {
            let conn = tx.conn().await?;
            Ok($crate::store::locks::all_locked!(
                conn,
                $table::table
                    .filter($table::organization_id.eq(permit.organization()).and($table::key_version.eq(version)))
                    .filter($table::id.eq_any(ids))
                    .order($table::id)
                    .select(<$row>::as_select())
            )?)
        }

        /// Replaces how a row is sealed. What it says is not changed by that: a version that it has stays.
        ///
        /// # Errors
        /// Where the database fails.
        pub async fn update_sealed(
            tx: &mut $crate::store::Tx,
            permit: &$crate::model::Permit<$crate::model::RotateKeys>,
            row: &$row,
        ) -> $crate::store::Result<()> {
            let conn = tx.conn().await?;
            let own =
                $table::table.filter($table::organization_id.eq(permit.organization()).and($table::id.eq(row.id)));
            $crate::store::backend::on_conn!(conn, |c| diesel::update(own)
                .set(($table::$sealed.eq(&row.$sealed), $table::key_version.eq(&row.key_version)))
                .execute(c)
                .await?);
            Ok(())
        }
    };
}
pub(super) use resealing;
