//! How turns of conversations end before they are over, and what is left of them and of what was said.

use serde_json::json;

use crate::conversation::create;
use crate::invitation::join;
use crate::support::{PASSWORD, Socket, TestApp, both_databases};
use crate::turn::{said, send};

both_databases! {
    async fn what_a_removed_user_has_said_goes_and_nothing_of_it_comes_after(app: TestApp) {
        let admin = app.admin().await;
        let kept = create(&admin, json!({})).await["id"].clone();
        send(&admin, &kept, "Hello").await;
        let left = "SELECT CAST((SELECT count(*) FROM conversations) AS TEXT) || ' ' || CAST((SELECT count(*) FROM messages) AS TEXT) AS text";
        let mut by = Vec::new();
        for email in ["removed@example.com", "leaving@example.com"] {
            let (id, user) = join(&app, &admin, email, "MEMBER").await;
            let conversation = create(&user, json!({ "systemPrompt": "Be brief." })).await["id"].clone();
            send(&user, &conversation, "Hello").await;
            create(&user, json!({})).await;
            by.push((id, user));
        }
        assert_eq!(app.database.texts(left).await, ["5 6"]);
        // One is in the middle of an answer, in a conversation that is made with it.
        let mut socket = Socket::connected(&app, &by[0].1).await;
        socket.subscribe("a", "subscription { messageStream(input: { text: \"!slow\" }) { ... on MessageDelta { text } } }").await;
        assert_eq!(socket.event("a").await["messageStream"]["text"], "Slow");
        let delete = "mutation($id: ID!) { deleteUser(input: { id: $id }) { deletedId } }";
        admin.with(delete, json!({ "id": by[0].0 })).await.data();
        let leave = "mutation($p: String!) { deleteMyAccount(input: { password: { plain: $p } }) { deletedId } }";
        by[1].1.with(leave, json!({ "p": PASSWORD })).await.data();
        app.services().turns.close();
        app.services().turns.wait().await;
        assert_eq!(app.database.texts(left).await, ["1 2"]);
        assert_eq!(said(&admin, &kept).await.len(), 2);
    }
}
