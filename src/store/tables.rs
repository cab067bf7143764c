//! The tables, declared once for every database. A test holds that both databases have them so.

diesel::table! {
    use diesel::sql_types::Text;
    use crate::store::fields::UtcTimestamp;

    organizations (id) {
        id -> Text,
        name -> Text,
        plan -> Text,
        settings -> Text,
        created_at -> UtcTimestamp,
        updated_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    users (id) {
        id -> Text,
        organization_id -> Text,
        email -> Text,
        email_key -> Nullable<Text>,
        full_name -> Text,
        full_name_folded -> Text,
        search_text -> Text,
        role -> Text,
        status -> Text,
        password_hash -> Nullable<Text>,
        email_verified_at -> Nullable<UtcTimestamp>,
        last_sign_in_at -> Nullable<UtcTimestamp>,
        last_sign_in_rank -> UtcTimestamp,
        created_at -> UtcTimestamp,
        updated_at -> UtcTimestamp,
        deleted_at -> Nullable<UtcTimestamp>,
        version -> Integer,
    }
}

diesel::table! {
    use diesel::sql_types::{Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    sessions (id) {
        id -> Text,
        organization_id -> Text,
        user_id -> Text,
        generation -> Integer,
        ip_address -> Nullable<Text>,
        user_agent -> Nullable<Text>,
        created_at -> UtcTimestamp,
        last_used_at -> UtcTimestamp,
        expires_at -> UtcTimestamp,
        revoked_at -> Nullable<UtcTimestamp>,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Integer, Text};
    use crate::store::fields::UtcTimestamp;

    refresh_tokens (id) {
        id -> Text,
        session_id -> Text,
        digest -> Binary,
        generation -> Integer,
        created_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Text};
    use crate::store::fields::UtcTimestamp;

    invitations (user_id) {
        user_id -> Text,
        digest -> Binary,
        created_at -> UtcTimestamp,
        expires_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    claude_accounts (id) {
        id -> Text,
        organization_id -> Text,
        account_name -> Text,
        account_name_folded -> Text,
        search_text -> Text,
        email -> Nullable<Text>,
        organization -> Nullable<Text>,
        status -> Text,
        tier -> Text,
        api_key_sealed -> Binary,
        api_key_key_version -> Text,
        api_key_version -> Integer,
        api_key_fingerprint -> Binary,
        api_key_hint -> Text,
        usage_limit -> Nullable<BigInt>,
        current_usage -> BigInt,
        usage_resets_at -> UtcTimestamp,
        base_url -> Nullable<Text>,
        priority -> Integer,
        health_state -> Text,
        health_until -> Nullable<UtcTimestamp>,
        health_last_error -> Nullable<Text>,
        is_near_limit -> Bool,
        last_used_at -> Nullable<UtcTimestamp>,
        features -> Nullable<Text>,
        metadata -> Nullable<Text>,
        created_at -> UtcTimestamp,
        updated_at -> UtcTimestamp,
        version -> Integer,
    }
}

diesel::table! {
    use diesel::sql_types::{Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    clients (id) {
        id -> Text,
        organization_id -> Text,
        name -> Text,
        name_folded -> Text,
        company -> Nullable<Text>,
        company_folded -> Text,
        search_text -> Text,
        email -> Nullable<Text>,
        phone -> Nullable<Text>,
        notes -> Nullable<Text>,
        status -> Text,
        owner_id -> Nullable<Text>,
        metadata -> Nullable<Text>,
        archived_at -> Nullable<UtcTimestamp>,
        created_at -> UtcTimestamp,
        updated_at -> UtcTimestamp,
        version -> Integer,
    }
}

diesel::table! {
    use diesel::sql_types::{Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    tasks (id) {
        id -> Text,
        organization_id -> Text,
        client_id -> Text,
        title -> Text,
        title_folded -> Text,
        search_text -> Text,
        description -> Nullable<Text>,
        status -> Text,
        priority -> Text,
        priority_rank -> Integer,
        assignee_id -> Nullable<Text>,
        due_at -> Nullable<UtcTimestamp>,
        due_sort -> UtcTimestamp,
        completed_at -> Nullable<UtcTimestamp>,
        created_by -> Nullable<Text>,
        created_at -> UtcTimestamp,
        updated_at -> UtcTimestamp,
        version -> Integer,
    }
}

diesel::table! {
    use diesel::sql_types::{Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    credentials (id) {
        id -> Text,
        organization_id -> Text,
        client_id -> Text,
        label -> Text,
        label_folded -> Text,
        search_text -> Text,
        username -> Nullable<Text>,
        url -> Nullable<Text>,
        secret_version -> Integer,
        key_version -> Text,
        created_by -> Nullable<Text>,
        updated_by -> Nullable<Text>,
        last_accessed_at -> Nullable<UtcTimestamp>,
        last_accessed_sort -> UtcTimestamp,
        created_at -> UtcTimestamp,
        updated_at -> UtcTimestamp,
        version -> Integer,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    credential_secrets (credential_id, secret_version) {
        credential_id -> Text,
        secret_version -> Integer,
        organization_id -> Text,
        sealed -> Binary,
        key_version -> Text,
        created_by -> Nullable<Text>,
        created_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    api_keys (id) {
        id -> Text,
        organization_id -> Text,
        owner_id -> Text,
        client_id -> Nullable<Text>,
        name -> Text,
        name_folded -> Text,
        search_text -> Text,
        description -> Nullable<Text>,
        key_prefix -> Text,
        scopes -> Text,
        issued_with -> Nullable<Text>,
        allowed_ips -> Text,
        allowed_models -> Text,
        rate_limit_per_minute -> Nullable<Integer>,
        rate_limit_per_hour -> Nullable<Integer>,
        concurrency_limit -> Nullable<Integer>,
        token_limit_per_day -> Nullable<BigInt>,
        cost_limit_micro_usd_per_month -> Nullable<BigInt>,
        expires_at -> Nullable<UtcTimestamp>,
        expires_sort -> UtcTimestamp,
        revoked_at -> Nullable<UtcTimestamp>,
        last_used_at -> Nullable<UtcTimestamp>,
        last_used_sort -> UtcTimestamp,
        last_used_ip -> Nullable<Text>,
        created_by -> Nullable<Text>,
        created_at -> UtcTimestamp,
        updated_at -> UtcTimestamp,
        version -> Integer,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    api_key_digests (digest) {
        digest -> Binary,
        api_key_id -> Text,
        key_version -> Text,
        expires_at -> Nullable<UtcTimestamp>,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Binary, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    audit_logs (id) {
        id -> Text,
        organization_id -> Text,
        sequence -> BigInt,
        occurred_at -> UtcTimestamp,
        action -> Text,
        operation -> Text,
        outcome -> Text,
        error_code -> Nullable<Text>,
        resource_type -> Text,
        resource_id -> Nullable<Text>,
        changes -> Nullable<Text>,
        metadata -> Nullable<Text>,
        user_id -> Nullable<Text>,
        api_key_id -> Nullable<Text>,
        ip_address -> Nullable<Text>,
        user_agent -> Nullable<Text>,
        request_id -> Text,
        hash -> Binary,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Binary, Text};

    audit_heads (organization_id) {
        organization_id -> Text,
        sequence -> BigInt,
        hash -> Binary,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Binary, Text};
    use crate::store::fields::UtcTimestamp;

    audit_seals (organization_id) {
        organization_id -> Text,
        sequence -> BigInt,
        hash -> Binary,
        sealed_at -> UtcTimestamp,
        key_version -> Text,
        signature -> Binary,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    mail_tokens (digest) {
        digest -> Binary,
        purpose -> Text,
        user_id -> Nullable<Text>,
        email -> Text,
        created_at -> UtcTimestamp,
        expires_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Integer, Text};
    use crate::store::fields::UtcTimestamp;

    outbox (id) {
        id -> Text,
        organization_id -> Text,
        sealed -> Binary,
        key_version -> Text,
        attempts -> Integer,
        due_at -> UtcTimestamp,
        created_at -> UtcTimestamp,
        give_up_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Text};
    use crate::store::fields::UtcTimestamp;

    encryption_keys (version) {
        version -> Text,
        digest -> Binary,
        created_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    notifications (id) {
        id -> Text,
        organization_id -> Text,
        user_id -> Text,
        sequence -> BigInt,
        kind -> Text,
        title -> Text,
        body -> Text,
        resource_id -> Nullable<Text>,
        needs -> Nullable<Text>,
        said -> Text,
        read_at -> Nullable<UtcTimestamp>,
        created_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    conversations (id) {
        id -> Text,
        organization_id -> Text,
        owner_id -> Text,
        client_id -> Nullable<Text>,
        title -> Text,
        title_folded -> Text,
        search_text -> Text,
        model -> Nullable<Text>,
        system_prompt -> Nullable<Binary>,
        key_version -> Nullable<Text>,
        metadata -> Nullable<Text>,
        message_count -> Integer,
        created_at -> UtcTimestamp,
        updated_at -> UtcTimestamp,
        version -> Integer,
        answering_by -> Nullable<Text>,
        answering_until -> Nullable<UtcTimestamp>,
        prompt_version -> Integer,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    messages (id) {
        id -> Text,
        organization_id -> Text,
        owner_id -> Text,
        conversation_id -> Text,
        ordinal -> Integer,
        role -> Text,
        sealed -> Binary,
        key_version -> Text,
        usage -> Nullable<Text>,
        created_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Text};
    use crate::store::fields::UtcTimestamp;

    devices (digest) {
        digest -> Binary,
        user_id -> Text,
        last_seen_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{Binary, Text};
    use crate::store::fields::UtcTimestamp;

    password_keys (id) {
        id -> Text,
        sealed -> Binary,
        key_version -> Text,
        created_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::Binary;
    use crate::store::fields::UtcTimestamp;

    password_nonces (digest) {
        digest -> Binary,
        expires_at -> UtcTimestamp,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    leases (name) {
        name -> Text,
        holder -> Nullable<Text>,
        #[sql_name = "term"]
        revision -> BigInt,
        changed_at -> UtcTimestamp,
        finished_at -> Nullable<UtcTimestamp>,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};
    use crate::store::fields::UtcTimestamp;

    usage_records (id) {
        id -> Text,
        organization_id -> Text,
        sequence -> BigInt,
        occurred_at -> UtcTimestamp,
        api_key_id -> Nullable<Text>,
        user_id -> Nullable<Text>,
        client_id -> Nullable<Text>,
        claude_account_id -> Nullable<Text>,
        model -> Text,
        asked_model -> Text,
        endpoint -> Text,
        status_code -> Integer,
        error_type -> Nullable<Text>,
        streamed -> Bool,
        interrupted -> Bool,
        attempts -> Integer,
        input_tokens -> BigInt,
        output_tokens -> BigInt,
        cache_write_5m_tokens -> BigInt,
        cache_write_1h_tokens -> BigInt,
        cache_read_tokens -> BigInt,
        web_searches -> BigInt,
        cost_nano_usd -> BigInt,
        is_estimated -> Bool,
        is_known_model -> Bool,
        latency_ms -> Integer,
        time_to_first_token_ms -> Nullable<Integer>,
        request_id -> Text,
        upstream_request_id -> Nullable<Text>,
        session_id -> Nullable<Text>,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Text};

    usage_heads (organization_id) {
        organization_id -> Text,
        sequence -> BigInt,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Text};
    use crate::store::fields::UtcTimestamp;

    usage_rollups (organization_id, span, start_at, api_key_id, user_id, client_id, claude_account_id, model) {
        organization_id -> Text,
        span -> Text,
        start_at -> UtcTimestamp,
        api_key_id -> Text,
        user_id -> Text,
        client_id -> Text,
        claude_account_id -> Text,
        model -> Text,
        requests -> BigInt,
        failed_requests -> BigInt,
        input_tokens -> BigInt,
        output_tokens -> BigInt,
        cache_creation_tokens -> BigInt,
        cache_read_tokens -> BigInt,
        cost_nano_usd -> BigInt,
        latency_ms -> BigInt,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Integer, Text};
    use crate::store::fields::UtcTimestamp;

    budgets (api_key_id) {
        api_key_id -> Text,
        organization_id -> Text,
        key_version -> Integer,
        day -> UtcTimestamp,
        tokens -> BigInt,
        month -> UtcTimestamp,
        cost_nano_usd -> BigInt,
    }
}

diesel::table! {
    use diesel::sql_types::{BigInt, Text};

    budget_holds (api_key_id, server) {
        api_key_id -> Text,
        server -> Text,
        organization_id -> Text,
        beat -> BigInt,
        requests -> BigInt,
        tokens -> BigInt,
        cost_nano_usd -> BigInt,
        transaction_number -> BigInt,
    }
}

diesel::joinable!(sessions -> users (user_id));
diesel::joinable!(refresh_tokens -> sessions (session_id));
diesel::joinable!(invitations -> users (user_id));
diesel::joinable!(mail_tokens -> users (user_id));
diesel::joinable!(api_keys -> users (owner_id));
diesel::joinable!(api_key_digests -> api_keys (api_key_id));
diesel::allow_tables_to_appear_in_same_query!(users, sessions);
diesel::allow_tables_to_appear_in_same_query!(sessions, refresh_tokens);
diesel::allow_tables_to_appear_in_same_query!(users, invitations);
diesel::allow_tables_to_appear_in_same_query!(users, mail_tokens);
diesel::allow_tables_to_appear_in_same_query!(users, api_keys, api_key_digests);
