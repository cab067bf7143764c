//! The organization, through the API.

use serde_json::json;

use crate::support::both_databases;

const UPDATE: &str = "mutation($input: UpdateOrganizationInput!) {
  updateOrganization(input: $input) { organization { name settings updatedAt } } }";

both_databases! {
    async fn what_an_update_leaves_out_stays(app: TestApp) {
        let admin = app.admin().await;
        let input = json!({ "name": " Größe AG ", "settings": { "a": { "b": [1, null] } } });
        let changed = admin.with(UPDATE, json!({ "input": input })).await.data()["updateOrganization"]["organization"].clone();
        assert_eq!((&changed["name"], &changed["settings"]), (&json!("Größe AG"), &json!({ "a": { "b": [1, null] } })));
        app.advance(1);
        let same = admin.with(UPDATE, json!({ "input": {} })).await.data()["updateOrganization"]["organization"].clone();
        assert_eq!(same, changed);
        let renamed = admin.with(UPDATE, json!({ "input": { "name": "B" } })).await.data()["updateOrganization"]["organization"].clone();
        assert_eq!((&renamed["name"], &renamed["settings"]), (&json!("B"), &changed["settings"]));
        assert_ne!(renamed["updatedAt"], changed["updatedAt"]);
        assert_eq!(admin.run("{ organization { name settings updatedAt } }").await.data()["organization"], renamed);
        let log = "{ auditLogs(filter: { resourceType: [ORGANIZATION], action: [UPDATE] }) { nodes { changes resource { id } } } }";
        let entries = admin.run(log).await.data()["auditLogs"]["nodes"].clone();
        assert_eq!(entries[0]["changes"], json!({ "name": { "from": "Größe AG", "to": "B" } }));
        assert!(entries[0]["resource"]["id"].is_string());
    }

    async fn every_wrong_field_is_named(app: TestApp) {
        let admin = app.admin().await;
        for (input, fields) in [
            (json!({ "name": null, "settings": null }), &["name", "settings"][..]),
            (json!({ "name": " ", "settings": [] }), &["name", "settings"]),
            (json!({ "name": "x".repeat(101) }), &["name"]),
            (json!({ "settings": { "k": "x".repeat(64 * 1024) } }), &["settings"]),
        ] {
            let answer = admin.with(UPDATE, json!({ "input": input })).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", fields));
        }
        assert_eq!(admin.run("{ organization { name } }").await.data()["organization"]["name"], "My organization");
    }

    async fn only_administrators_change_it(app: TestApp) {
        for role in ["ADMIN", "MANAGER", "MEMBER", "READ_ONLY"] {
            let answer = app.user(role).await.with(UPDATE, json!({ "input": { "name": role } })).await;
            if role == "ADMIN" { answer.data(); } else { assert_eq!(answer.code(), "FORBIDDEN", "{role}"); }
        }
    }

    async fn another_organization_is_left_alone(app: TestApp) {
        let admin = app.admin().await;
        app.database.execute(
            "INSERT INTO organizations SELECT 'org_00000000000000000000000001', 'theirs', plan, settings, created_at, updated_at FROM organizations",
        ).await.unwrap();
        admin.with(UPDATE, json!({ "input": { "name": "ours", "settings": { "a": 1 } } })).await.data();
        let names = app.database.texts("SELECT name || settings AS text FROM organizations ORDER BY name").await;
        assert_eq!(names, ["ours{\"a\":1}", "theirs{}"]);
    }
}
