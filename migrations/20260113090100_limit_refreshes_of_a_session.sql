-- The throttle of refreshes, handed on from each token to its successor: how far ahead of the clock it is tells how much
-- of the session's allowance is used up ("theoretical arrival time"). Null while a session refreshes now and then: it is
-- one refresh ahead of `created_at`.
ALTER TABLE refresh_tokens ADD COLUMN refresh_tat timestamp;
